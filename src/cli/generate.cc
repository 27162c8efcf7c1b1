// SPDX-License-Identifier: Apache-2.0
// weir generate: continues a prompt, byte by byte.
#include "weir/models/generate.h"

#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <filesystem>
#include <iostream>
#include <iterator>
#include <memory>
#include <string>
#include <system_error>

#include "cli/errors.h"
#include "cli/utf8_stream.h"
#include "cli/verbs.h"
#include "config/atomic_file.h"
#include "config/document.h"
#include "train/checkpoint_store.h"
#include "train/stop_signals.h"
#include "weir/models/checkpoint.h"

namespace weir::cli {
namespace {

struct GenerateArguments {
  std::string path, prompt = "\n", prompt_file;
  // Cooler than the library's neutral 1: small models write better text so.
  models::GenerateOptions options = {.temperature = 0.8};
  bool json = false, no_cache = false;
};

std::string read_prompt(const GenerateArguments& arguments) {
  if (arguments.prompt_file.empty()) return arguments.prompt;
  if (arguments.prompt_file != "-") return config::read_file(arguments.prompt_file);
  return {std::istreambuf_iterator<char>(std::cin), {}};
}

// False when the reader is gone, as after `| head`.
bool write_out(const std::string& text) {
  for (std::size_t done = 0; done < text.size();) {
    const ssize_t written = ::write(STDOUT_FILENO, text.data() + done, text.size() - done);
    if (written >= 0) done += static_cast<std::size_t>(written);
    if (written < 0 && errno == EPIPE) return false;
    if (written < 0 && errno != EINTR) {
      throw std::system_error(errno, std::generic_category(), "cannot write the text");
    }
  }
  return true;
}

std::shared_ptr<models::LanguageModel> load(const std::string& path) {
  auto model = train::read_newest(path, models::load_model,
                                  [](const std::string& line) { complain("warning: " + line); });
  if (model->num_tokens() == 256) return model;
  throw train::IncompatibleError(path +
                                 ": expected a model of bytes, `num_tokens` = 256, but got " +
                                 std::to_string(model->num_tokens()));
}

std::vector<std::int64_t> tokens_of(const std::string& text) {
  const auto* bytes = reinterpret_cast<const unsigned char*>(text.data());
  return {bytes, bytes + text.size()};
}

// The text as it comes; it ends with a line break in any case.
models::Generated stream(models::LanguageModel& model, const std::string& prompt,
                         const models::GenerateOptions& options) {
  Utf8Stream characters;
  std::string begin;
  for (const char byte : prompt) begin += characters.push(static_cast<unsigned char>(byte));
  bool open = write_out(begin), at_line_start = prompt.ends_with('\n');
  auto rows =
      models::generate(model, {tokens_of(prompt)}, options, [&](std::int64_t, std::int64_t token) {
        at_line_start = token == '\n';
        open = open && write_out(characters.push(static_cast<unsigned char>(token)));
        return open && train::StopSignals::received() == 0;
      });
  if (open) write_out(characters.finish() + (at_line_start ? "" : "\n"));
  return std::move(rows.front());
}

// One JSON object when all is done.
models::Generated print_json(models::LanguageModel& model, const std::string& prompt,
                             const models::GenerateOptions& options) {
  const auto begin = std::chrono::steady_clock::now();
  auto rows = models::generate(model, {tokens_of(prompt)}, options, [](std::int64_t, std::int64_t) {
    return train::StopSignals::received() == 0;
  });
  const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - begin;
  const auto& tokens = rows.front().tokens;
  const config::Json document = {
      {"prompt", to_utf8(prompt)},
      {"text", to_utf8({tokens.begin(), tokens.end()})},
      {"prompt_tokens", prompt.size()},
      {"new_tokens", tokens.size()},
      {"stop_reason", models::to_string(rows.front().stop_reason)},
      {"seed", options.seed},
      {"seconds", seconds.count()},
      {"tokens_per_second", static_cast<double>(tokens.size()) / seconds.count()}};
  write_out(document.dump() + "\n");
  return std::move(rows.front());
}

int generate(const GenerateArguments& arguments) {
  const train::StopSignals signals;
  const auto model = load(arguments.path);
  auto options = arguments.options;
  options.use_cache = !arguments.no_cache;
  (arguments.json ? print_json : stream)(*model, read_prompt(arguments), options);
  const int signal = train::StopSignals::received();
  return signal == 0 ? kOk : kSignal + signal;
}

}  // namespace

void add_generate(CLI::App& program, Session& session) {
  auto* verb = program.add_subcommand("generate", "Write text with a trained model");
  const auto arguments = std::make_shared<GenerateArguments>();
  auto& options = arguments->options;
  verb->add_option("DIR", arguments->path, "A run (its latest checkpoint) or a checkpoint")
      ->required();
  auto* prompt =
      verb->add_option("--prompt", arguments->prompt, "Text to continue; default: a line break");
  verb->add_option("--prompt-file", arguments->prompt_file,
                   "File with the text to continue; - reads the standard input")
      ->excludes(prompt);
  const auto number = [&](const char* name, auto& value, const char* help) {
    verb->add_option(name, value, help)->capture_default_str();
  };
  number("--max-new-tokens", options.max_new_tokens, "Bytes to write at most");
  number("--temperature", options.temperature, "Divides the logits; 0 takes the likeliest byte");
  number("--top-k", options.top_k, "Sample among the k likeliest; 0: all");
  number("--top-p", options.top_p, "Sample among the likeliest with this probability together");
  number("--repetition-penalty", options.repetition_penalty, "Above 1 discourages repetition");
  number("--seed", options.seed, "Seed of the random numbers");
  verb->add_option("--stop", options.stop, "End after this text");
  verb->add_flag("--json", arguments->json, "Print one JSON object at the end");
  verb->add_flag("--no-cache", arguments->no_cache, "Read the whole text again for every byte");
  verb->allow_extras();
  verb->callback([verb, arguments, &session] {
    refuse_overrides(*verb, session.overrides);
    refuse_leftovers(*verb, {});
    session.exit_code = generate(*arguments);
  });
}

}  // namespace weir::cli
