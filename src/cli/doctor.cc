// SPDX-License-Identifier: Apache-2.0
// weir doctor: what Weir runs on, a fact per line, and what to do about what is wrong.
#include <ATen/Version.h>
#include <c10/util/Exception.h>
#include <hwy/highway.h>
#include <omp.h>
#include <torch/cuda.h>
#include <torch/utils.h>
#include <torch/version.h>

#include <fstream>
#include <iostream>
#include <set>
#include <string>
#include <vector>

#include "cli/errors.h"
#include "cli/verbs.h"
#include "config/error.h"
#include "data/byte_corpus.h"

namespace weir::cli {
namespace {

using Problems = std::vector<std::string>;

void fact(const std::string& name, const std::string& value) {
  std::cout << name << ": " << value << "\n";
}

// The version of the library that was loaded; the headers only know the one built with.
std::string torch_found() {
  const std::string config = at::show_config();
  const std::string key = "TORCH_VERSION=";
  const auto at = config.find(key);
  if (at == std::string::npos) return "unknown";
  const auto begin = at + key.size();
  return config.substr(begin, config.find_first_of(", \n", begin) - begin);
}

void examine_torch(Problems& problems) {
  const std::string found = torch_found();
  fact("torch", "built for " TORCH_VERSION ", found " + found);
  if (found != "unknown" && found != TORCH_VERSION) {
    problems.push_back("built for torch " TORCH_VERSION ", found " + found +
                       "; build again: make clean build");
  }
}

void examine_instruction_set() {
  const std::int64_t usable = hwy::SupportedTargets() & HWY_TARGETS;
  // The best is the lowest bit.
  fact("instruction set", hwy::TargetName(usable & -usable));
}

// The OpenMP libraries in this process, by their files.
std::set<std::string> openmp_runtimes() {
  std::set<std::string> files;
  std::ifstream maps("/proc/self/maps");
  for (std::string line; std::getline(maps, line);) {
    const auto slash = line.rfind('/');
    if (slash == std::string::npos) continue;
    const std::string name = line.substr(slash + 1);
    if (name.starts_with("libgomp") || name.starts_with("libomp") || name.starts_with("libiomp")) {
      files.insert(line.substr(line.find('/')));
    }
  }
  return files;
}

int threads_seen() {
  int threads = 0;
#pragma omp parallel reduction(+ : threads)
  threads += 1;
  return threads;
}

void examine_threads(Problems& problems) {
  const int wanted = torch::get_num_threads(), seen = threads_seen();
  fact("threads", std::to_string(wanted) + ", seen at work in OpenMP: " + std::to_string(seen));
  if (wanted > 1 && seen < 2) {
    problems.push_back("OpenMP runs on one thread; unset OMP_NUM_THREADS, and build with -fopenmp");
  }
  const auto runtimes = openmp_runtimes();
  for (const auto& file : runtimes) fact("OpenMP runtime", file);
  if (runtimes.size() > 1) {
    problems.push_back("more than one OpenMP runtime is loaded, their threads will compete");
  }
}

void examine_cuda() {
  const auto devices = torch::cuda::device_count();
  fact("CUDA", devices > 0 ? std::to_string(devices) + " devices found" : "no device found");
  fact("CUDA kernels", "none compiled in; on CUDA Weir uses torch's operators");
}

void examine_memory() {
  std::ifstream file("/proc/meminfo");
  for (std::string line; std::getline(file, line);) {
    if (!line.starts_with("MemTotal") && !line.starts_with("MemAvailable")) continue;
    const double gigabytes = std::stod(line.substr(line.find(':') + 1)) / (1 << 20);
    char text[32];
    std::snprintf(text, sizeof text, "%.1f GiB", gigabytes);
    fact(line.starts_with("MemTotal") ? "memory" : "memory available", text);
  }
}

void examine_corpus(Problems& problems) {
  try {
    fact("default corpus", data::ByteCorpus({}).description());
  } catch (const config::InputError& error) {
    problems.push_back(error.what());
  }
}

int doctor() {
  Problems problems;
  fact("weir", WEIR_VERSION);
  examine_torch(problems);
  examine_instruction_set();
  examine_threads(problems);
  examine_cuda();
  examine_memory();
  examine_corpus(problems);
  if (problems.empty()) std::cout << "ok\n";
  for (const auto& problem : problems) std::cout << "problem: " << problem << "\n";
  return problems.empty() ? kOk : kInternalError;
}

}  // namespace

void add_doctor(CLI::App& program, Session& session) {
  auto* verb = program.add_subcommand("doctor", "Show what Weir runs on, and what is wrong");
  verb->allow_extras();
  verb->callback([verb, &session] {
    refuse_overrides(*verb, session.overrides);
    refuse_leftovers(*verb, {});
    session.exit_code = doctor();
  });
}

}  // namespace weir::cli
