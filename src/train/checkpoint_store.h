// SPDX-License-Identifier: Apache-2.0
// The checkpoints of a run directory:
//
//   RUN/checkpoints/step_00000500/   whole, or not there: made under another name and renamed
//   RUN/checkpoints/latest           the name of the newest, replaced when that is in place
//
// Whatever a killed process leaves has a name that nothing reads, and goes with clean().
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <string>
#include <vector>

#include "config/error.h"
#include "train/checkpoint.h"
#include "weir/export.h"

namespace weir::train {

class WEIR_API CheckpointStore {
 public:
  /// Does not touch the disk.
  explicit CheckpointStore(const std::filesystem::path& run);

  /// Writes a checkpoint of `state.step`, in place of an older one of this step, makes it the
  /// latest and removes all but the `keep_last` latest (0: none). Throws std::system_error; then
  /// the older checkpoints are as they were.
  void save(const TrainerState& state, const models::LanguageModel& model,
            const models::TensorMap& optimizer, std::int64_t keep_last);

  /// The latest checkpoint and those of earlier steps, newest first. Later ones, which are left
  /// when a run was continued from an older checkpoint, do not count.
  std::vector<std::filesystem::path> candidates() const;

  /// Makes the checkpoint at `path` the latest, if it is one of this run. Throws std::system_error.
  void rewind(const std::filesystem::path& path) const;

  /// Removes what killed processes left. Only for the one that holds the run's lock.
  void clean() const;

 private:
  void set_latest(const std::string& name) const;
  void prune(std::int64_t keep_last) const;

  std::filesystem::path folder_;
};

/// The checkpoint at `path`, a run directory (then the latest that is whole) or a checkpoint: what
/// `read` makes of it. `warn` gets a line about each that `read` refused with InputError. Throws
/// config::InputError when none is left.
template <class Read>
auto read_newest(const std::filesystem::path& path, const Read& read,
                 const std::function<void(const std::string&)>& warn) {
  const auto candidates = CheckpointStore(path).candidates();
  if (candidates.empty()) {
    if (std::filesystem::exists(path / "config.json")) return read(path);
    throw config::InputError(path.string() + ": expected a run or a checkpoint, but there is none");
  }
  for (std::size_t i = 0; i + 1 < candidates.size(); ++i) {
    try {
      return read(candidates[i]);
    } catch (const config::InputError& error) {
      warn(std::string(error.what()) + "; taking the checkpoint before it");
    }
  }
  return read(candidates.back());
}

}  // namespace weir::train
