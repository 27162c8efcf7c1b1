// SPDX-License-Identifier: Apache-2.0
// safetensors files: what is written is read back to the bit, also across Python, and every
// malformed file is refused with words that say what is wrong. The files are written out here.
#include "models/safetensors.h"

#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <fstream>
#include <string>
#include <vector>

#include "config/atomic_file.h"
#include "config/error.h"
#include "models/malformed_safetensors.h"
#include "support/temporary_directory.h"

namespace weir::models {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;
using ::testing::StartsWith;
using ::testing::ThrowsMessage;

// Its values in memory as they read; torch keeps conjugates and negatives as flags on views.
at::Tensor plain(const at::Tensor& tensor) {
  return tensor.resolve_conj().resolve_neg().contiguous();
}

bool same_bits(const at::Tensor& a, const at::Tensor& b) {
  if (a.scalar_type() != b.scalar_type() || a.sizes() != b.sizes()) return false;
  const at::Tensor x = plain(a), y = plain(b);
  return x.nbytes() == 0 || std::memcmp(x.const_data_ptr(), y.const_data_ptr(), x.nbytes()) == 0;
}

void expect_same(const TensorMap& actual, const TensorMap& expected) {
  ASSERT_EQ(actual.size(), expected.size());
  for (const auto& [name, tensor] : expected) {
    ASSERT_TRUE(actual.contains(name)) << name;
    EXPECT_TRUE(same_bits(actual.at(name), tensor)) << name;
  }
}

class Safetensors : public ::testing::Test {
 protected:
  SafetensorsFile read(const std::string& bytes) const {
    std::filesystem::remove(path_);  // some file systems flush a file that is truncated and written
    std::ofstream(path_, std::ios::binary) << bytes;
    return read_safetensors(path_);
  }
  void expect_round_trip(const TensorMap& tensors, const Metadata& metadata = {}) const {
    write_safetensors(path_, tensors, metadata);
    const SafetensorsFile file = read_safetensors(path_);
    expect_same(file.tensors, tensors);
    EXPECT_EQ(file.metadata, metadata);
  }
  std::string small_file() const {
    write_safetensors(path_, {{"ab", at::tensor({1.5f, -2.0f})},
                              {"mask", at::tensor({1, 0}).to(at::kBool)},
                              {"n", at::scalar_tensor(3, at::kLong)}});
    return config::read_file(path_);
  }

  tests::TemporaryDirectory directory_;
  std::filesystem::path path_ = directory_ / "file.safetensors";
};

TEST_F(Safetensors, RoundTripOfEveryDtype) {
  TensorMap tensors;
  const at::Tensor source = at::arange(-6, 6).reshape({3, 4});
  for (const auto dtype : {at::kDouble, at::kFloat, at::kHalf, at::kBFloat16, at::kLong, at::kInt,
                           at::kShort, at::kChar, at::kUInt64, at::kUInt32, at::kUInt16, at::kByte,
                           at::kBool, at::kComplexFloat, at::kFloat8_e4m3fn, at::kFloat8_e5m2,
                           at::kFloat8_e4m3fnuz, at::kFloat8_e5m2fnuz, at::kFloat8_e8m0fnu}) {
    tensors[c10::toString(dtype)] = source.abs().to(at::kFloat).to(dtype);
  }
  ASSERT_EQ(tensors.size(), 19u);
  tensors["negative"] = source;
  expect_round_trip(tensors);
}

TEST_F(Safetensors, RoundTripOfEveryKindOfTensor) {
  const at::Tensor base = at::arange(24, at::kFloat).reshape({2, 3, 4});
  expect_round_trip({{"scalar", at::scalar_tensor(2.5)},
                     {"empty", at::empty({0})},
                     {"zero sized", at::empty({3, 0, 2}, at::kHalf)},
                     {"transposed", base.transpose(0, 2)},
                     {"slice", base.slice(2, 1, 4, 2)},
                     {"expanded", at::tensor({1.0f}).expand({5, 4})},
                     {"flipped sign", at::_neg_view(base)},
                     {"conjugate", at::complex(base, base).conj()},
                     {"parameter", base.clone().requires_grad_()},
                     {"not finite", at::tensor({NAN, INFINITY, -INFINITY, -0.0f})},
                     {"", base},
                     {"naïve \"\\\n\t\x01 名", base}});
  expect_round_trip({});
  expect_round_trip({{"w", base}}, {{"format", "pt"}, {"", ""}, {"quote \"", "línea\n"}});
}

TEST_F(Safetensors, ReadTensorsOwnTheirMemory) {
  write_safetensors(path_, {{"a", at::ones({3})}, {"b", at::ones({3})}});
  const TensorMap tensors = read_safetensors(path_).tensors;
  std::filesystem::remove(path_);
  tensors.at("a").zero_();
  EXPECT_TRUE(same_bits(tensors.at("b"), at::ones({3})));
}

TEST_F(Safetensors, OrderPaddingAndChecksums) {
  write_safetensors(path_, {{"a", at::tensor({1}).to(at::kByte)},
                            {"b", at::tensor({1.0f})},
                            {"c", at::tensor({2.0f})},
                            {"d", at::tensor({1.0})}});
  const std::string bytes = config::read_file(path_);
  EXPECT_EQ(static_cast<unsigned char>(bytes[0]) % 8, 0);
  std::vector<std::size_t> order;
  for (const char* name : {"\"d\":", "\"b\":", "\"c\":", "\"a\":"})
    order.push_back(bytes.find(name));
  EXPECT_TRUE(std::ranges::is_sorted(order));
  EXPECT_LT(order.back(), bytes.size());
  // xxh64 of "F32[1]" and the bytes of 1.0f; computed with Python's xxhash.
  EXPECT_THAT(bytes, HasSubstr(R"("xxh64.b":"09fcbe2877aa2cf0")"));
  write_safetensors(directory_ / "again", {{"w", at::ones({2})}});
  write_safetensors(path_, {{"w", at::ones({2})}});
  EXPECT_EQ(config::read_file(path_), config::read_file(directory_ / "again"));
}

TEST_F(Safetensors, ReadsWhatPythonWrites) {
  // safetensors.numpy.save of Python's safetensors 0.8.0.
  const std::string header =
      R"({"__metadata__":{"format":"pt"},"step":{"dtype":"I64","shape":[],"data_offsets":[0,8]},)"
      R"("w":{"dtype":"F32","shape":[1,3],"data_offsets":[8,20]},)"
      R"("none":{"dtype":"F16","shape":[0,3],"data_offsets":[20,20]},)"
      R"("mask":{"dtype":"BOOL","shape":[2],"data_offsets":[20,22]}}  )";
  const std::string data("\7\0\0\0\0\0\0\0\0\0\x80?\0\0\0\xc0\0\0`@\1\0", 22);
  const SafetensorsFile file = read(length_bytes(264) + header + data);
  expect_same(file.tensors, {{"step", at::scalar_tensor(7, at::kLong)},
                             {"w", at::tensor({1.0f, -2.0f, 3.5f}).reshape({1, 3})},
                             {"none", at::empty({0, 3}, at::kHalf)},
                             {"mask", at::tensor({1, 0}).to(at::kBool)}});
  EXPECT_EQ(file.metadata, (Metadata{{"format", "pt"}}));
}

TEST_F(Safetensors, RefusesMalformedFilesInOneLine) {
  for (const auto& [bytes, words] : malformed_files()) {
    EXPECT_THAT([&] { read(bytes); },
                ThrowsMessage<config::InputError>(AllOf(StartsWith(path_.string() + ": "),
                                                        HasSubstr(words), Not(HasSubstr("\n")))))
        << bytes.substr(0, 200);
  }
}

TEST_F(Safetensors, NamesInMessagesAreEscapedAndCut) {
  EXPECT_THAT(
      [&] { read(file_of(R"({"a\n\u001b[2Jé":1})")); },
      ThrowsMessage<config::InputError>(HasSubstr(R"(tensor `a\n\u001b[2J\u00e9`: expected)")));
  EXPECT_THAT([&] { read(file_of("{\"" + std::string(1000, 'x') + "\":1}")); },
              ThrowsMessage<config::InputError>(HasSubstr(" `" + std::string(100, 'x') + "...`:")));
}

TEST_F(Safetensors, RefusesWhatIsNoFile) {
  EXPECT_THAT([&] { read_safetensors(directory_ / "none"); },
              ThrowsMessage<config::InputError>(
                  HasSubstr("none: expected a file that can be opened, but: No such file")));
  EXPECT_THAT([&] { read_safetensors(directory_.path()); },
              ThrowsMessage<config::InputError>(HasSubstr("expected a regular file")));
  EXPECT_THAT([&] { read_safetensors("/dev/zero"); },
              ThrowsMessage<config::InputError>(HasSubstr("expected a regular file")));
}

TEST_F(Safetensors, EveryTruncationIsRefused) {
  const std::string bytes = small_file();
  for (std::size_t size = 0; size < bytes.size(); ++size) {
    EXPECT_THROW(read(bytes.substr(0, size)), config::InputError) << size;
  }
}

TEST_F(Safetensors, EveryChangedByteIsRefusedOrHarmless) {
  const std::string bytes = small_file();
  const TensorMap expected = read(bytes).tensors;
  int harmless = 0;
  for (std::size_t i = 0; i < bytes.size(); ++i) {
    // Each single bit, all bits, and what turns F32 into I32 and digits into other digits.
    for (const int change : {1, 2, 3, 4, 8, 16, 32, 64, 128, 255, 'F' ^ 'I', 'F' ^ 'U'}) {
      std::string changed = bytes;
      changed[i] = static_cast<char>(changed[i] ^ change);
      try {
        expect_same(read(changed).tensors, expected);
        ++harmless;
      } catch (const config::InputError&) {
      }
    }
  }
  EXPECT_LE(harmless,
            8 * 2);  // padding turned into other white space; there is nothing else to change
}

TEST_F(Safetensors, WriterRefusesWhatTheFormatCannotHold) {
  const auto refuses = [&](const TensorMap& tensors, const Metadata& metadata, const char* words) {
    EXPECT_THAT([&] { write_safetensors(path_, tensors, metadata); },
                ThrowsMessage<config::Error>(AllOf(StartsWith("safetensors: "), HasSubstr(words))));
    EXPECT_FALSE(std::filesystem::exists(path_));
  };
  const at::Tensor w = at::ones({2});
  refuses({{"w", at::Tensor()}}, {}, "tensor `w`: expected a tensor, but it is undefined");
  refuses({{"w", w.to_sparse()}}, {}, "tensor `w`: expected a dense tensor with data");
  refuses({{"w", at::empty({2}, at::device(at::kMeta))}}, {}, "expected a dense tensor with data");
  refuses({{"w", w.to(at::kComplexDouble)}}, {}, "a dtype of the format, but got ComplexDouble");
  refuses({{"__metadata__", w}}, {}, "expected another name, as the format reserves this one");
  refuses({{"\xff", w}}, {}, "expected names to be UTF-8");
  refuses({{"w", w}}, {{"\xff", ""}}, "expected metadata keys to be UTF-8");
  refuses({{"w", w}}, {{"k", "\xff"}}, "expected metadata to be UTF-8");
  refuses({{"w", w}}, {{"xxh64.w", ""}}, "expected metadata keys not to start with `xxh64.`");
}

}  // namespace
}  // namespace weir::models
