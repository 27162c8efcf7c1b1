// SPDX-License-Identifier: Apache-2.0
// WEIR_MODULE(Name) declares the holder `Name` of the module `NameImpl` whose options are
// `NameOptions`: torch's TORCH_MODULE that can also be constructed from designated options,
//
//   CoordinateDescentAttention attention({.dim = 512, .heads = 4});
#pragma once

#include <torch/nn/pimpl.h>

#include <memory>

#define WEIR_MODULE(Name)                                        \
  class Name : public torch::nn::ModuleHolder<Name##Impl> {      \
   public:                                                       \
    using torch::nn::ModuleHolder<Name##Impl>::ModuleHolder;     \
    using Impl = Name##Impl;                                     \
    explicit Name(const Name##Options& options)                  \
        : ModuleHolder(std::make_shared<Name##Impl>(options)) {} \
  }
