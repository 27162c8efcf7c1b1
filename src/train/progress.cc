// SPDX-License-Identifier: Apache-2.0
// Text of the bar and the lines.
#include "train/progress.h"

#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <numbers>

namespace weir::train {
namespace {

constexpr auto kRedrawInterval = std::chrono::milliseconds(100);

template <class... Values>
std::string format(const char* pattern, Values... values) {
  char text[160];
  std::snprintf(text, sizeof text, pattern, values...);
  return text;
}

std::string duration(double seconds) {
  const auto whole = static_cast<long long>(seconds + 0.5);
  const long long hours = whole / 3600, minutes = whole / 60 % 60;
  return hours > 0 ? format("%lld:%02lld:%02lld", hours, minutes, whole % 60)
                   : format("%lld:%02lld", minutes, whole % 60);
}

std::string rate(double per_second) {
  return per_second < 1e4   ? format("%.0f", per_second)
         : per_second < 1e6 ? format("%.1fk", per_second / 1e3)
                            : format("%.1fM", per_second / 1e6);
}

std::size_t terminal_width() {
  winsize size = {};
  if (::ioctl(STDERR_FILENO, TIOCGWINSZ, &size) != 0 || size.ws_col == 0) return 80;
  return size.ws_col;
}

}  // namespace

Progress::Style Progress::style_of_terminal() {
  const char* terminal = std::getenv("TERM");
  const char* no_color = std::getenv("NO_COLOR");
  const bool dumb = terminal == nullptr || std::strcmp(terminal, "dumb") == 0;
  const bool plain = no_color != nullptr && *no_color != '\0';
  return ::isatty(STDERR_FILENO) != 0 && !dumb && !plain ? Style::kBar : Style::kLines;
}

void Progress::start(std::int64_t done, std::int64_t steps, std::int64_t log_every) {
  first_ = done;
  steps_ = steps;
  log_every_ = log_every;
  started_ = Clock::now();
}

void Progress::step(std::int64_t step, double loss, double bytes_per_second) {
  loss_sum_ += loss;
  ++loss_count_;
  if (style_ == Style::kBar) {
    if (step < steps_ && Clock::now() - drawn_ < kRedrawInterval) return;
    draw(step, summary(step, loss, bytes_per_second));
    return;
  }
  if (log_every_ == 0 || (step % log_every_ != 0 && step != steps_)) return;
  const double mean = loss_sum_ / static_cast<double>(loss_count_);
  line("step " + summary(step, mean, bytes_per_second));
  loss_sum_ = 0;
  loss_count_ = 0;
}

void Progress::evaluation(std::int64_t step, double bits_per_byte) {
  line(format("step %lld/%lld  held-out text: %.4f bits/byte", static_cast<long long>(step),
              static_cast<long long>(steps_), bits_per_byte));
}

void Progress::note(const std::string& text) { line("weir: " + text); }

void Progress::finish() {
  if (!bar_.empty()) out_ << "\n" << std::flush;
  bar_.clear();
}

std::string Progress::summary(std::int64_t step, double loss, double bytes_per_second) const {
  const double elapsed = std::chrono::duration<double>(Clock::now() - started_).count();
  const double left = static_cast<double>(steps_ - step) / static_cast<double>(step - first_);
  return format("%lld/%lld  loss %.4f  %.3f bits/byte  ", static_cast<long long>(step),
                static_cast<long long>(steps_), loss, loss / std::numbers::ln2) +
         rate(bytes_per_second) + " bytes/s  " + duration(elapsed) + " ETA " +
         duration(elapsed * left);
}

void Progress::draw(std::int64_t step, const std::string& summary) {
  const std::size_t width = terminal_width();
  const std::size_t room = width > summary.size() + 4 ? width - summary.size() - 4 : 0;
  const std::size_t cells = std::min<std::size_t>(room, 30);
  const std::size_t filled =
      cells * static_cast<std::size_t>(step) / std::max<std::size_t>(steps_, 1);
  bar_ = cells < 5
             ? summary.substr(0, width - 1)
             : "[" + std::string(filled, '#') + std::string(cells - filled, ' ') + "] " + summary;
  out_ << "\r" + bar_ + "\x1b[K" << std::flush;
  drawn_ = Clock::now();
}

void Progress::line(const std::string& text) {
  const std::string erase = bar_.empty() ? "" : "\r\x1b[K";
  // In one piece: standard error is unbuffered, and two processes may share it.
  out_ << erase + text + "\n" + bar_ << std::flush;
}

}  // namespace weir::train
