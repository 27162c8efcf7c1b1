// SPDX-License-Identifier: Apache-2.0
// Names, order and removal of checkpoints.
#include "train/checkpoint_store.h"

#include <algorithm>
#include <cstdio>
#include <optional>
#include <system_error>

#include "config/atomic_file.h"

namespace weir::train {
namespace {

namespace fs = std::filesystem;

constexpr auto kLatestFile = "latest";
constexpr std::string_view kStepPrefix = "step_";
constexpr std::string_view kTemporaryPrefix = ".weir-";  // that of config::AtomicFile as well

std::string step_name(std::int64_t step) {
  char name[32];
  std::snprintf(name, sizeof name, "step_%08lld", static_cast<long long>(step));
  return name;
}

// The step of a name that step_name made.
std::optional<std::int64_t> step_of(const std::string& name) {
  if (!name.starts_with(kStepPrefix) || name.size() > 24) return std::nullopt;
  const std::string digits = name.substr(kStepPrefix.size());
  if (digits.empty() || digits.find_first_not_of("0123456789") != std::string::npos) {
    return std::nullopt;
  }
  const std::int64_t step = std::stoll(digits);
  return step_name(step) == name ? std::optional(step) : std::nullopt;
}

// The entries of a folder that may not exist.
std::vector<fs::path> entries(const fs::path& folder) {
  std::error_code ignored;
  std::vector<fs::path> paths;
  for (const auto& entry : fs::directory_iterator(folder, ignored)) paths.push_back(entry.path());
  return paths;
}

// Steps newest first; no file is opened.
std::vector<std::int64_t> steps_in(const fs::path& folder) {
  std::vector<std::int64_t> steps;
  for (const auto& path : entries(folder)) {
    if (const auto step = step_of(path.filename().string())) steps.push_back(*step);
  }
  std::ranges::sort(steps, std::ranges::greater());
  return steps;
}

std::optional<std::int64_t> latest_step(const fs::path& folder) {
  try {
    std::string name = config::read_file(folder / kLatestFile);
    if (name.ends_with('\n')) name.pop_back();
    return step_of(name);
  } catch (const config::InputError&) {
    return std::nullopt;
  }
}

}  // namespace

CheckpointStore::CheckpointStore(const fs::path& run) : folder_(run / "checkpoints") {}

void CheckpointStore::save(const TrainerState& state, const models::LanguageModel& model,
                           const models::TensorMap& optimizer, std::int64_t keep_last) {
  const std::string name = step_name(state.step);
  const fs::path final = folder_ / name;
  const fs::path temporary = folder_ / (std::string(kTemporaryPrefix) + name);
  const fs::path replaced = folder_ / (std::string(kTemporaryPrefix) + name + ".old");
  try {
    fs::create_directories(temporary);
    write_checkpoint(temporary, state, model, optimizer);
    if (fs::exists(final)) fs::rename(final, replaced);
    config::publish_directory(temporary, final);
  } catch (...) {
    std::error_code ignored;  // the first error is the one to report
    fs::remove_all(temporary, ignored);
    if (!fs::exists(final)) fs::rename(replaced, final, ignored);
    throw;
  }
  set_latest(name);
  fs::remove_all(replaced);
  prune(keep_last);
}

std::vector<fs::path> CheckpointStore::candidates() const {
  const auto latest = latest_step(folder_);
  std::vector<fs::path> paths;
  for (const std::int64_t step : steps_in(folder_)) {
    if (!latest || step <= *latest) paths.push_back(folder_ / step_name(step));
  }
  return paths;
}

void CheckpointStore::rewind(const fs::path& path) const {
  const auto resolved = fs::canonical(path);
  if (!fs::exists(folder_) || resolved.parent_path() != fs::canonical(folder_)) return;
  set_latest(resolved.filename().string());
}

void CheckpointStore::set_latest(const std::string& name) const {
  config::write_file(folder_ / kLatestFile, name + "\n");
}

void CheckpointStore::prune(std::int64_t keep_last) const {
  const auto paths = candidates();
  if (keep_last == 0) return;
  for (std::size_t i = static_cast<std::size_t>(keep_last); i < paths.size(); ++i) {
    // Renamed first: a checkpoint of which half is removed must not look like one.
    const auto doomed = folder_ / (std::string(kTemporaryPrefix) + paths[i].filename().string());
    fs::rename(paths[i], doomed);
    fs::remove_all(doomed);
  }
}

void CheckpointStore::clean() const {
  for (const auto& folder : {folder_, folder_.parent_path()}) {
    for (const auto& path : entries(folder)) {
      if (path.filename().string().starts_with(kTemporaryPrefix)) fs::remove_all(path);
    }
  }
}

}  // namespace weir::train
