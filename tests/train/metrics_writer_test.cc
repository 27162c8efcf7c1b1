// SPDX-License-Identifier: Apache-2.0
// metrics.jsonl: rows, what stays of them when a run resumes, torn lines, numbers.
#include "train/metrics_writer.h"

#include <sys/resource.h>

#include <csignal>
#include <system_error>

#include "train/small_run.h"

namespace weir::train {
namespace {

const std::string kHeader =
    "{\"type\":\"header\",\"schema_version\":1,\"weir_version\":\"" WEIR_VERSION "\"}\n";
const std::string kStep1 = "{\"type\":\"step\",\"step\":1,\"loss\":2.5}\n";
const std::string kStep2 = "{\"type\":\"step\",\"step\":2,\"loss\":2.25}\n";
const std::string kEvaluation2 = "{\"type\":\"evaluation\",\"step\":2,\"eval_loss\":2.0}\n";
const std::string kStep3 = "{\"type\":\"step\",\"step\":3,\"loss\":null}\n";
const std::string kAll = kHeader + kStep1 + kStep2 + kEvaluation2 + kStep3;

std::string kept(const std::string& text, std::int64_t step, std::int64_t evaluated_step) {
  return text.substr(0, rows_up_to(text, step, evaluated_step));
}

TEST(MetricsRows, UpToAStep) {
  EXPECT_EQ(kept(kAll, 3, 2), kAll);
  EXPECT_EQ(kept(kAll, 2, 2), kHeader + kStep1 + kStep2 + kEvaluation2);
  EXPECT_EQ(kept(kAll, 2, 0), kHeader + kStep1 + kStep2) << "its evaluation is still due";
  EXPECT_EQ(kept(kAll, 1, 0), kHeader + kStep1);
  EXPECT_EQ(kept(kAll, 0, 0), kHeader);
}

TEST(MetricsRows, EveryTornEndIsDropped) {
  for (std::size_t size = 0; size < kAll.size(); ++size) {
    const std::string torn = kAll.substr(0, size);
    const auto end = torn.rfind('\n');
    EXPECT_EQ(kept(torn, 9, 9), end == std::string::npos ? "" : torn.substr(0, end + 1));
  }
}

TEST(MetricsRows, NothingFollowsWhatIsNoRow) {
  for (const std::string garbage :
       {"\n", "nonsense\n", "[1]\n", "{}\n", "{\"step\":\"2\"}\n", "{\"step\":1.5}\n"}) {
    EXPECT_EQ(kept(kHeader + kStep1 + garbage + kStep2, 9, 9), kHeader + kStep1);
    EXPECT_EQ(kept(garbage + kStep1, 9, 9), "") << "no header";
  }
  EXPECT_EQ(kept(kStep1, 9, 9), "");
  EXPECT_EQ(kept("{\"type\":\"header\",\"schema_version\":2}\n" + kStep1, 9, 9), "");
}

TEST(MetricsWriter, ContinuesAFile) {
  const tests::TemporaryDirectory directory;
  const auto path = directory / "metrics.jsonl";
  const auto row = [](int step, double loss) {
    return config::Json{{"type", "step"}, {"step", step}, {"loss", loss}};
  };
  {
    MetricsWriter writer(path, 0, 0);
    writer.append(row(1, 2.5));
    EXPECT_EQ(config::read_file(path), kHeader + kStep1) << "at once";
    writer.append(row(2, 7));
    writer.sync();
  }
  MetricsWriter writer(path, 1, 0);
  writer.append(row(2, 2.25));
  EXPECT_EQ(config::read_file(path), kHeader + kStep1 + kStep2);
}

TEST(MetricsWriter, NumbersReadBackAsTheSame) {
  const tests::TemporaryDirectory directory;
  const auto path = directory / "metrics.jsonl";
  const double loss = static_cast<double>(1.0f / 3.0f), other = 0.1 + 0.2;
  MetricsWriter(path, 0, 0).append({{"step", 1}, {"loss", loss}, {"other", other}});
  const auto text = config::read_file(path);
  const auto row = config::parse_json(text.substr(text.find('\n') + 1), "row");
  EXPECT_EQ(row["loss"].get<double>(), loss);
  EXPECT_EQ(row["other"].get<double>(), other);
}

TEST(MetricsWriter, RefusesAFolder) {
  const tests::TemporaryDirectory directory;
  EXPECT_THROW(MetricsWriter(directory / "no" / "metrics.jsonl", 0, 0), std::system_error);
}

// A limit on the size of files stands in for a full disk.
class FullDisk {
 public:
  explicit FullDisk(rlim_t bytes) : handler_(std::signal(SIGXFSZ, SIG_IGN)) {
    ::getrlimit(RLIMIT_FSIZE, &before_);
    const rlimit limit = {bytes, before_.rlim_max};
    ::setrlimit(RLIMIT_FSIZE, &limit);
  }
  ~FullDisk() {
    ::setrlimit(RLIMIT_FSIZE, &before_);
    std::signal(SIGXFSZ, handler_);
  }
  FullDisk(const FullDisk&) = delete;
  FullDisk& operator=(const FullDisk&) = delete;

 private:
  rlimit before_;
  void (*handler_)(int);
};

TEST(MetricsWriter, RowsWaitWhileTheDiskIsFull) {
  const tests::TemporaryDirectory directory;
  const auto path = directory / "metrics.jsonl";
  MetricsWriter writer(path, 0, 0);
  {
    const FullDisk full(kHeader.size() + 5);  // half a row would fit
    writer.append(config::Json::parse(kStep1));
    EXPECT_EQ(config::read_file(path), kHeader);
    EXPECT_THROW(writer.sync(), std::system_error);
  }
  writer.append(config::Json::parse(kStep2));
  EXPECT_EQ(config::read_file(path), kHeader + kStep1 + kStep2);
  writer.sync();
}

}  // namespace
}  // namespace weir::train
