// SPDX-License-Identifier: Apache-2.0
// The writing half of models/safetensors.h.
#include <algorithm>
#include <bit>
#include <cstdint>
#include <functional>
#include <nlohmann/json.hpp>
#include <string_view>
#include <vector>

#include "config/atomic_file.h"
#include "config/error.h"
#include "models/safetensors.h"
#include "models/safetensors_format.h"

namespace weir::models {
namespace {

static_assert(std::endian::native == std::endian::little, "the format is little-endian");

struct Item {
  const std::string* name;
  const at::Tensor* tensor;
  std::string_view dtype;
};

void check_utf8(const std::string& text, const char* what) {
  try {
    (void)nlohmann::json(text).dump();
  } catch (const nlohmann::json::type_error&) {
    throw config::Error(std::string("safetensors: expected ") + what + " to be UTF-8, but got " +
                        backticked(text) + ".");
  }
}

Item checked_item(const std::string& name, const at::Tensor& tensor) {
  const auto fail = [&](const std::string& what) {
    throw config::Error("safetensors: tensor " + backticked(name) + ": expected " + what + ".");
  };
  check_utf8(name, "names");
  if (name == kMetadataName) fail("another name, as the format reserves this one");
  if (!tensor.defined()) fail("a tensor, but it is undefined");
  if (tensor.layout() != at::kStrided || tensor.is_meta()) {
    fail("a dense tensor with data, but it is none");
  }
  const auto dtype = dtype_word(tensor.scalar_type());
  if (!dtype) {
    fail(std::string("a dtype of the format, but got ") + c10::toString(tensor.scalar_type()));
  }
  return {&name, &tensor, *dtype};
}

// Largest dtype first, so that every tensor is aligned in the file; then by name.
std::vector<Item> file_order(const TensorMap& tensors) {
  std::vector<Item> items;
  for (const auto& [name, tensor] : tensors) items.push_back(checked_item(name, tensor));
  std::ranges::stable_sort(items, std::greater(),
                           [](const Item& i) { return i.tensor->element_size(); });
  return items;
}

at::Tensor as_bytes_lie(const at::Tensor& tensor) {
  return tensor.detach().resolve_conj().resolve_neg().to(at::kCPU).contiguous();
}

std::string_view bytes_of(const at::Tensor& contiguous) {
  return {static_cast<const char*>(contiguous.const_data_ptr()), contiguous.nbytes()};
}

// The header, padded to 8 bytes. Computing the checksums here reads every tensor once more than
// writing would; in exchange the data is never held twice.
std::string make_header(const std::vector<Item>& items, Metadata metadata) {
  std::string entries;
  std::size_t offset = 0;
  for (const auto& [name, tensor, dtype] : items) {
    const at::Tensor contiguous = as_bytes_lie(*tensor);
    const std::string_view bytes = bytes_of(contiguous);
    metadata[std::string(kChecksumPrefix) + *name] =
        checksum(dtype, tensor->sizes(), bytes.data(), bytes.size());
    const nlohmann::ordered_json entry = {{"dtype", dtype},
                                          {"shape", tensor->sizes().vec()},
                                          {"data_offsets", {offset, offset + bytes.size()}}};
    entries += "," + nlohmann::json(*name).dump() + ":" + entry.dump();
    offset += bytes.size();
  }
  std::string header = "{\"__metadata__\":" + nlohmann::json(metadata).dump() + entries + "}";
  header.append((8 - header.size() % 8) % 8, ' ');
  if (header.size() <= kMaxHeaderBytes) return header;
  throw config::Error("safetensors: expected names and metadata to fit in a header of " +
                      std::to_string(kMaxHeaderBytes) + " bytes, but they take " +
                      std::to_string(header.size()) + ".");
}

}  // namespace

void write_safetensors(const std::filesystem::path& path, const TensorMap& tensors,
                       const Metadata& metadata) {
  for (const auto& [key, value] : metadata) {
    check_utf8(key, "metadata keys");
    check_utf8(value, "metadata");
    if (key.starts_with(kChecksumPrefix)) {
      throw config::Error(
          "safetensors: expected metadata keys not to start with `xxh64.`, but got " +
          backticked(key) + ".");
    }
  }
  const std::vector<Item> items = file_order(tensors);
  const std::string header = make_header(items, metadata);
  const std::uint64_t length = header.size();
  config::AtomicFile file(path);
  file.append({reinterpret_cast<const char*>(&length), sizeof length});
  file.append(header);
  for (const Item& item : items) file.append(bytes_of(as_bytes_lie(*item.tensor)));
  file.commit();
}

}  // namespace weir::models
