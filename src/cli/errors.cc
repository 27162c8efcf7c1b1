// SPDX-License-Identifier: Apache-2.0
// From exceptions to lines and codes.
#include "cli/errors.h"

#include <c10/util/Exception.h>

#include <algorithm>
#include <iostream>
#include <new>
#include <system_error>

#include "config/error.h"
#include "train/checkpoint.h"

namespace weir::cli {
namespace {

constexpr auto kOutOfMemory = "out of memory; a smaller train.batch_size or model may fit";

bool is_out_of_memory(const c10::Error& error) {
  // On the CPU torch has no class of its own for this.
  const std::string text = error.what_without_backtrace();
  return dynamic_cast<const c10::OutOfMemoryError*>(&error) != nullptr ||
         text.find("DefaultCPUAllocator") != std::string::npos;
}

int report_torch(const c10::Error& error, bool verbose) {
  const bool memory = is_out_of_memory(error);
  complain(memory ? kOutOfMemory : error.what_without_backtrace());
  if (verbose) std::cerr << error.what() << std::endl;
  if (memory) return kResource;
  return dynamic_cast<const c10::ValueError*>(&error) != nullptr ? kUsage : kInternalError;
}

}  // namespace

void complain(const std::string& text) {
  std::string line = text;
  std::ranges::replace(line, '\n', ' ');
  std::cerr << "weir: " + line + "\n" << std::flush;
}

int report(const std::exception_ptr& error, bool verbose) {
  const auto say = [](int code, const std::string& text) {
    complain(text);
    return code;
  };
  try {
    std::rethrow_exception(error);
  } catch (const config::Error& e) {
    return say(kUsage, e.what());
  } catch (const config::InputError& e) {
    return say(kBadInput, e.what());
  } catch (const train::IncompatibleError& e) {
    return say(kIncompatible, e.what());
  } catch (const std::bad_alloc&) {
    return say(kResource, kOutOfMemory);
  } catch (const std::system_error& e) {
    return say(kResource, e.what());
  } catch (const c10::Error& e) {
    return report_torch(e, verbose);
  } catch (const std::exception& e) {
    return say(kInternalError, std::string("internal error: ") + e.what());
  }
}

}  // namespace weir::cli
