// SPDX-License-Identifier: Apache-2.0
// Runs `weir` as a process of its own, with what it prints in files, and small runs to use it on.
#pragma once

#include <fcntl.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <spawn.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <filesystem>
#include <fstream>
#include <functional>
#include <string>
#include <thread>
#include <vector>

#include "config/atomic_file.h"
#include "config/document.h"
#include "support/temporary_directory.h"

namespace weir::cli {

using Arguments = std::vector<std::string>;

struct Finished {
  int code = 0;  ///< exit code, or minus the signal that ended it
  std::string out, err;
};

/// A process that may still run; it is killed at the end of its scope.
class Process {
 public:
  explicit Process(const Arguments& arguments, const std::string& input = "",
                   const std::string& program = WEIR_PROGRAM) {
    config::write_file(directory_ / "in", input);
    posix_spawn_file_actions_t files;
    ::posix_spawn_file_actions_init(&files);
    open(files, 0, "in", O_RDONLY);
    open(files, 1, "out", O_WRONLY | O_CREAT);
    open(files, 2, "err", O_WRONLY | O_CREAT);
    Arguments words = arguments;
    words.insert(words.begin(), program);
    // Threads that spin while they wait starve each other on a busy machine.
    ::setenv("OMP_WAIT_POLICY", "passive", 0);
    std::vector<char*> pointers;
    for (auto& word : words) pointers.push_back(word.data());
    pointers.push_back(nullptr);
    EXPECT_EQ(::posix_spawnp(&id_, program.c_str(), &files, nullptr, pointers.data(), environ), 0);
    ::posix_spawn_file_actions_destroy(&files);
  }
  ~Process() {
    if (id_ == 0) return;
    ::kill(id_, SIGKILL);
    wait();
  }
  Process(const Process&) = delete;
  Process& operator=(const Process&) = delete;

  void signal(int number) { ::kill(id_, number); }

  bool running() {
    siginfo_t info = {};
    return ::waitid(P_PID, static_cast<id_t>(id_), &info, WEXITED | WNOHANG | WNOWAIT) == 0 &&
           info.si_pid == 0;
  }

  Finished wait() {
    int status = 0;
    ::waitpid(id_, &status, 0);
    id_ = 0;
    return {WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status),
            config::read_file(directory_ / "out"), config::read_file(directory_ / "err")};
  }

 private:
  void open(posix_spawn_file_actions_t& files, int descriptor, const char* name, int flags) {
    ::posix_spawn_file_actions_addopen(&files, descriptor, (directory_ / name).c_str(), flags,
                                       0600);
  }

  tests::TemporaryDirectory directory_;
  pid_t id_ = 0;
};

inline Finished weir(const Arguments& arguments, const std::string& input = "") {
  return Process(arguments, input).wait();
}

/// Waits until `done`, or `process` has ended, or a minute is over.
inline void wait_until(Process& process, const std::function<bool()>& done) {
  for (int i = 0; i < 60000 && process.running() && !done(); ++i) {
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
}

inline Arguments operator+(Arguments a, const Arguments& b) {
  a.insert(a.end(), b.begin(), b.end());
  return a;
}

/// A directory with a text and a run file for a tiny model.
class Workplace : public ::testing::Test {
 protected:
  Workplace() {
    std::string text;
    for (int i = 0; i < 400; ++i) text += "line " + std::to_string(i * i) + " of the text\n";
    config::write_file(text_, text);
    config::write_file(config_,
                       "[model]\ndim = 32\ndepth = 1\nheads = 2\ndim_head = 16\nseq_len = 32\n"
                       "attn_use_coor_descent = true\n"
                       "[train]\nsteps = 12\nbatch_size = 2\nwarmup_steps = 2\n"
                       "eval_every = 4\neval_batches = 2\nsave_every = 5\nlog_every = 4\n");
  }

  Arguments train(const Arguments& more) {
    return Arguments{"train", "--config", config_, "--data", text_, "--threads", "1"} + more;
  }

  /// The rows of metrics.jsonl that have `key`, without what the clock decides.
  static Arguments rows(const std::string& run, const std::string& key) {
    Arguments found;
    std::ifstream file(run + "/metrics.jsonl");
    for (std::string line; std::getline(file, line);) {
      auto row = config::parse_json(line, "metrics.jsonl");
      if (!row.contains(key)) continue;
      row.erase("seconds");
      row.erase("tokens_per_second");
      found.push_back(row.dump());
    }
    return found;
  }

  std::string at(const std::string& name) const { return (directory_ / name).string(); }

  tests::TemporaryDirectory directory_;
  const std::string text_ = at("text.txt"), config_ = at("run.toml");
};

/// A Workplace with one trained run for all tests of a suite.
class TrainedWorkplace : public Workplace {
 protected:
  static void SetUpTestSuite() {
    shared_ = new Shared();
    ASSERT_EQ(weir(shared_->arguments()).code, 0);
  }
  static void TearDownTestSuite() {
    delete shared_;
    shared_ = nullptr;
  }

  static std::string run() { return shared_->at("run"); }

 private:
  struct Shared : Workplace {
    void TestBody() override {}
    Arguments arguments() { return train({"--out", at("run")}); }
    using Workplace::at;
  };
  static inline Shared* shared_ = nullptr;
};

}  // namespace weir::cli
