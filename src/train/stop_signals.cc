// SPDX-License-Identifier: Apache-2.0
// Handlers of SIGINT and SIGTERM.
#include "train/stop_signals.h"

#include <signal.h>
#include <unistd.h>

#include <csignal>

namespace weir::train {
namespace {

volatile std::sig_atomic_t received_signal = 0;

void handle(int signal) {
  if (received_signal != 0) ::_exit(128 + signal);
  received_signal = signal;
}

void install(void (*handler)(int)) {
  struct sigaction action = {};
  action.sa_handler = handler;
  action.sa_flags = SA_RESTART;  // a write that is under way goes on
  for (const int signal : {SIGINT, SIGTERM}) ::sigaction(signal, &action, nullptr);
}

}  // namespace

StopSignals::StopSignals() {
  received_signal = 0;
  install(handle);
}

StopSignals::~StopSignals() { install(SIG_DFL); }

int StopSignals::received() { return received_signal; }

}  // namespace weir::train
