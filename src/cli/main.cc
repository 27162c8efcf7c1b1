// SPDX-License-Identifier: Apache-2.0
// The program `weir`: verbs, errors, exit codes.
#include <CLI/CLI.hpp>

#include <algorithm>
#include <csignal>
#include <exception>
#include <iostream>
#include <string>
#include <vector>

#include "cli/arguments.h"
#include "cli/errors.h"
#include "cli/verbs.h"
#include "config/error.h"
#include "config/nearest.h"

namespace weir::cli {
namespace {

void set_up(CLI::App& program, Session& session) {
  program.name("weir");
  program.require_subcommand(1);
  program.set_version_flag("--version", "weir " WEIR_VERSION);
  add_train(program, session);
  add_generate(program, session);
  add_eval(program, session);
  add_inspect(program, session);
  add_doctor(program, session);
  // Last, or the verbs would inherit it.
  program.footer(
      "`weir help VERB` shows the options of a verb. --verbose shows where an error comes from.");
}

// "help train" is "train --help".
void rewrite_help(std::vector<std::string>& arguments) {
  if (arguments.empty()) arguments = {"--help"};
  if (arguments.front() != "help") return;
  arguments.erase(arguments.begin());
  arguments.push_back("--help");
}

// Wherever it stands: CLI11 would want it before the verb.
bool take_verbose(std::vector<std::string>& arguments) {
  return std::erase(arguments, "--verbose") > 0;
}

void check_verb(const CLI::App& program, const std::string& verb) {
  std::vector<std::string> verbs;
  for (const auto* subcommand : program.get_subcommands(nullptr)) {
    verbs.push_back(subcommand->get_name());
  }
  if (verb.starts_with('-') || std::ranges::find(verbs, verb) != verbs.end()) return;
  const std::string meant = config::nearest(verb, verbs);
  throw config::Error("unknown verb " + verb +
                      (meant.empty() ? "; see weir --help" : "; did you mean " + meant + "?"));
}

int run(std::vector<std::string> arguments) {
  const bool verbose = take_verbose(arguments);
  CLI::App program("Trains and runs language models with sparse and routed attention.");
  Session session;
  try {
    set_up(program, session);
    rewrite_help(arguments);
    check_verb(program, arguments.front());
    session.overrides = take_overrides(arguments);
    std::ranges::reverse(arguments);  // CLI11 reads from the back
    program.parse(arguments);
    return session.exit_code;
  } catch (const CLI::Success& success) {
    return program.exit(success);  // --help and --version
  } catch (const CLI::ParseError& error) {
    complain(error.what());
    return kUsage;
  } catch (...) {
    return report(std::current_exception(), verbose);
  }
}

}  // namespace
}  // namespace weir::cli

int main(int count, char** arguments) {
  // A reader that goes away is an error of write, not the end of the process.
  std::signal(SIGPIPE, SIG_IGN);
  return weir::cli::run({arguments + 1, arguments + count});
}
