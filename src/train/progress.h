// SPDX-License-Identifier: Apache-2.0
// What a person sees of a run: one bar that is redrawn on a terminal, a line now and then
// elsewhere. Results of evaluations and notes are lines of their own in both.
//
//   [#########           ] 250/500  loss 1.234  1.780 bits/byte  5.1k bytes/s  ETA 1:23
#pragma once

#include <chrono>
#include <cstdint>
#include <ostream>
#include <string>

#include "weir/export.h"

namespace weir::train {

class WEIR_API Progress {
 public:
  enum class Style { kLines, kBar };

  /// kBar if standard error is a terminal that can redraw and NO_COLOR is not set.
  static Style style_of_terminal();

  Progress(std::ostream& out, Style style) : out_(out), style_(style) {}

  /// Steps `done` + 1 ... `steps` follow, with a line every `log_every` steps (0: none).
  void start(std::int64_t done, std::int64_t steps, std::int64_t log_every);

  /// After each step. Lines show the mean of the losses since the line before.
  void step(std::int64_t step, double loss, double bytes_per_second);

  void evaluation(std::int64_t step, double bits_per_byte);

  /// A line "weir: ..." of its own.
  void note(const std::string& text);

  /// Ends the bar's line, so that other text can follow.
  void finish();

 private:
  using Clock = std::chrono::steady_clock;

  std::string summary(std::int64_t step, double loss, double bytes_per_second) const;
  void draw(std::int64_t step, const std::string& summary);
  void line(const std::string& text);

  std::ostream& out_;
  const Style style_;
  std::int64_t first_ = 0, steps_ = 0, log_every_ = 0;
  Clock::time_point started_ = Clock::now(), drawn_;
  double loss_sum_ = 0;
  std::int64_t loss_count_ = 0;
  std::string bar_;  // what stands on the terminal's last line
};

}  // namespace weir::train
