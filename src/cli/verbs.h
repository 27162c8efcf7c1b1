// SPDX-License-Identifier: Apache-2.0
// The verbs of the program. Each adds itself to the parser, with its flags; when it is the one that
// is asked for, it runs while the arguments are parsed, and leaves its exit code in the session.
#pragma once

#include <CLI/CLI.hpp>

#include "cli/arguments.h"

namespace weir::cli {

struct Session {
  Overrides overrides;  ///< --model.dim 256 and the like, which only `train` knows
  int exit_code = 0;
};

void add_train(CLI::App& program, Session& session);
void add_generate(CLI::App& program, Session& session);
void add_eval(CLI::App& program, Session& session);
void add_inspect(CLI::App& program, Session& session);
void add_doctor(CLI::App& program, Session& session);

}  // namespace weir::cli
