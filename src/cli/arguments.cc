// SPDX-License-Identifier: Apache-2.0
// Dotted options and leftovers.
#include "cli/arguments.h"

#include "config/error.h"
#include "config/nearest.h"

namespace weir::cli {
namespace {

// The name of an override, "model.dim" of "--model.dim=256"; empty if it is none.
std::string override_name(const std::string& argument) {
  if (!argument.starts_with("--")) return "";
  const std::string name = argument.substr(2, argument.find('=') - 2);
  return name.find('.') == std::string::npos ? "" : name;
}

std::vector<std::string> known_words(const CLI::App& verb, const std::vector<std::string>& keys) {
  std::vector<std::string> words = keys;
  for (const auto* option : verb.get_options()) {
    for (const auto& name : option->get_lnames()) words.push_back(name);
  }
  return words;
}

}  // namespace

Overrides take_overrides(std::vector<std::string>& arguments) {
  Overrides overrides;
  std::vector<std::string> rest;
  for (std::size_t i = 0; i < arguments.size(); ++i) {
    const std::string& argument = arguments[i];
    const std::string name = override_name(argument);
    if (argument == "--") {
      rest.insert(rest.end(), arguments.begin() + static_cast<std::ptrdiff_t>(i), arguments.end());
      break;
    }
    if (name.empty()) {
      rest.push_back(argument);
    } else if (const auto equals = argument.find('='); equals != std::string::npos) {
      overrides.emplace_back(name, argument.substr(equals + 1));
    } else if (i + 1 < arguments.size() && !arguments[i + 1].starts_with("--")) {
      overrides.emplace_back(name, arguments[++i]);
    } else {
      throw config::Error("--" + name + " needs a value, as in --" + name + " true");
    }
  }
  arguments = std::move(rest);
  return overrides;
}

void refuse_overrides(const CLI::App& verb, const Overrides& overrides) {
  if (overrides.empty()) return;
  const std::string program = "weir " + verb.get_name();
  throw config::Error(program + ": unknown option --" + overrides.front().first +
                      "; only weir train takes the options of a run");
}

void refuse_leftovers(const CLI::App& verb, const std::vector<std::string>& keys) {
  const auto leftovers = verb.remaining();
  if (leftovers.empty()) return;
  const std::string& first = leftovers.front();
  const std::string program = "weir " + verb.get_name();
  if (!first.starts_with("--")) throw config::Error(program + ": unexpected argument " + first);
  const std::string name = first.substr(2, first.find('=') - 2);
  const std::string meant = config::nearest(name, known_words(verb, keys));
  throw config::Error(
      program + ": unknown option --" + name +
      (meant.empty() ? "; see " + program + " --help" : "; did you mean --" + meant + "?"));
}

}  // namespace weir::cli
