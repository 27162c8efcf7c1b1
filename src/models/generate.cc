// SPDX-License-Identifier: Apache-2.0
// The generation loop: logits of the rows that still grow, a token for each, who stops.
#include "weir/models/generate.h"

#include <c10/util/Exception.h>

#include <algorithm>
#include <cmath>
#include <numeric>

#include "models/decoder.h"
#include "models/sampling.h"
#include "nn/check.h"

namespace weir::models {
namespace {

constexpr auto kName = "generate";

// Evaluation mode until the end of the scope.
class Evaluation {
 public:
  explicit Evaluation(LanguageModel& model) : model_(model), was_training_(model.is_training()) {
    model_.eval();
  }
  ~Evaluation() { model_.train(was_training_); }
  Evaluation(const Evaluation&) = delete;
  Evaluation& operator=(const Evaluation&) = delete;

 private:
  LanguageModel& model_;
  bool was_training_;
};

void check(const GenerateOptions& options) {
  nn::check_at_least(kName, "max_new_tokens", options.max_new_tokens, 0);
  nn::check_at_least(kName, "top_k", options.top_k, 0);
  nn::check_at_least(kName, "first_row", options.first_row, 0);
  nn::check_positive(kName, "repetition_penalty", options.repetition_penalty);
  TORCH_CHECK_VALUE(std::isfinite(options.temperature) && options.temperature >= 0, "weir::", kName,
                    ": expected `temperature` to be finite and at least 0, but got ",
                    options.temperature, ".");
  TORCH_CHECK_VALUE(options.top_p > 0 && options.top_p <= 1, "weir::", kName,
                    ": expected `top_p` to lie in (0, 1], but got ", options.top_p, ".");
}

// Before anything is generated: one bad prompt must not end the others in the middle.
void check(const std::vector<Tokens>& prompts, std::int64_t num_tokens) {
  for (std::size_t row = 0; row < prompts.size(); ++row) {
    TORCH_CHECK_VALUE(!prompts[row].empty(), "weir::", kName, ": expected prompt ", row,
                      " to have at least 1 token, but it is empty.");
    for (const std::int64_t token : prompts[row]) {
      TORCH_CHECK_VALUE(token >= 0 && token < num_tokens, "weir::", kName,
                        ": expected the tokens of prompt ", row, " in [0, ", num_tokens,
                        "), but got ", token, ".");
    }
  }
}

Logits checked(const at::Tensor& row, std::int64_t prompt) {
  const double* data = row.const_data_ptr<double>();
  Logits logits(data, data + row.numel());
  bool possible = false;
  for (const double logit : logits) {
    TORCH_CHECK_VALUE(!std::isnan(logit) && logit != INFINITY, "weir::", kName,
                      ": expected the model's logits to be finite or -inf, but row ", prompt,
                      " has ", logit, ".");
    possible = possible || std::isfinite(logit);
  }
  TORCH_CHECK_VALUE(possible, "weir::", kName,
                    ": expected a token that can follow, but all logits of row ", prompt,
                    " are -inf.");
  return logits;
}

bool ends_with_stop(const Tokens& tokens, const GenerateOptions& options) {
  const auto& single = options.stop_tokens;
  if (std::find(single.begin(), single.end(), tokens.back()) != single.end()) return true;
  const std::string& text = options.stop;
  return !text.empty() && tokens.size() >= text.size() &&
         std::equal(text.rbegin(), text.rend(), tokens.rbegin(), [](char byte, std::int64_t token) {
           return static_cast<unsigned char>(byte) == token;
         });
}

// Adds `token` to a row; true if the row goes on.
bool add(Generated& result, std::int64_t row, std::int64_t token, const GenerateOptions& options,
         const OnToken& on_token) {
  result.tokens.push_back(token);
  const bool wanted = !on_token || on_token(row, token);
  const bool stopped = ends_with_stop(result.tokens, options);
  if (stopped || !wanted) {
    result.stop_reason = stopped ? StopReason::kStop : StopReason::kCancelled;
  }
  return wanted && !stopped;
}

}  // namespace

std::string_view to_string(StopReason reason) {
  switch (reason) {
    case StopReason::kStop:
      return "stop";
    case StopReason::kCancelled:
      return "cancelled";
    case StopReason::kMaxNewTokens:
      break;
  }
  return "max_new_tokens";
}

std::vector<Generated> generate(LanguageModel& model, const std::vector<Tokens>& prompts,
                                const GenerateOptions& options, const OnToken& on_token) {
  check(options);
  check(prompts, model.num_tokens());
  at::NoGradGuard no_grad;
  Evaluation evaluation(model);
  Decoder decoder(model, options.use_cache);
  std::vector<Generated> results(prompts.size());
  std::vector<Tokens> sequences = prompts;
  std::vector<std::int64_t> growing(prompts.size());
  std::iota(growing.begin(), growing.end(), 0);
  for (std::int64_t i = 0; i < options.max_new_tokens && !growing.empty(); ++i) {
    const at::Tensor logits = decoder.next_logits(sequences, growing);  // (growing, num_tokens)
    std::vector<std::int64_t> still_growing;
    for (std::size_t j = 0; j < growing.size(); ++j) {
      const std::int64_t row = growing[j];
      const std::int64_t token =
          sample(checked(logits[static_cast<std::int64_t>(j)], row), sequences[row], options,
                 uniform(options.seed, options.first_row + row, i));
      sequences[row].push_back(token);
      if (add(results[row], row, token, options, on_token)) still_growing.push_back(row);
    }
    growing = std::move(still_growing);
  }
  return results;
}

}  // namespace weir::models
