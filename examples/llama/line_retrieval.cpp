#include "line_retrieval.hpp"

#include <array>
#include <charconv>
#include <numeric>
#include <stdexcept>
#include <vector>

#include "random.hpp"

namespace zipcache_llama {
namespace {

constexpr std::array<std::string_view, 64> adjectives = {
    "amber",  "ancient",  "bashful", "bitter",  "bold",    "brave",  "bright",  "broken",
    "calm",   "clever",   "cold",    "crisp",   "curious", "daring", "distant", "dusty",
    "eager",  "early",    "faint",   "fancy",   "fierce",  "frozen", "gentle",  "giant",
    "golden", "happy",    "hollow",  "honest",  "hungry",  "idle",   "jolly",   "keen",
    "late",   "lively",   "lonely",  "lucky",   "merry",   "mighty", "modest",  "narrow",
    "noble",  "odd",      "pale",    "patient", "plain",   "proud",  "quick",   "quiet",
    "rapid",  "restless", "rusty",   "scarlet", "shy",     "silent", "silver",  "simple",
    "sleepy", "sturdy",   "sunny",   "tender",  "tiny",    "velvet", "wild",    "young"};

constexpr std::array<std::string_view, 64> nouns = {
    "anchor",  "apple",   "badger", "basket", "beacon",  "bridge", "button", "candle",
    "canyon",  "carpet",  "castle", "cedar",  "clock",   "cloud",  "comet",  "copper",
    "dolphin", "eagle",   "engine", "falcon", "feather", "fiddle", "forest", "fox",
    "garden",  "glacier", "hammer", "harbor", "hill",    "island", "jacket", "kettle",
    "ladder",  "lantern", "lemon",  "lion",   "magnet",  "maple",  "meadow", "mirror",
    "needle",  "ocean",   "orchid", "otter",  "paper",   "pebble", "pillow", "planet",
    "pocket",  "rabbit",  "river",  "saddle", "shadow",  "spoon",  "stone",  "tiger",
    "tower",   "train",   "tunnel", "turtle", "valley",  "violin", "window", "wolf"};

constexpr int num_keys = static_cast<int>(adjectives.size() * nouns.size());
constexpr int smallest_number = 10'000;
constexpr int count_of_numbers = 90'000;

std::string key_text(int key) {
  const auto index = static_cast<std::size_t>(key);
  return std::string(adjectives[index / nouns.size()]) + "-" +
         std::string(nouns[index % nouns.size()]);
}

// `count` different numbers below `range`, in random order: the start of a Fisher–Yates shuffle.
std::vector<int> draw_distinct(int count, int range, random_stream& random) {
  std::vector<int> all(static_cast<std::size_t>(range));
  std::iota(all.begin(), all.end(), 0);
  for (std::size_t i = 0; i < static_cast<std::size_t>(count); ++i) {
    std::swap(all[i], all[i + random.below(all.size() - i)]);
  }
  all.resize(static_cast<std::size_t>(count));
  return all;
}

}  // namespace

int max_retrieval_lines() { return num_keys; }

line_retrieval_prompt make_line_retrieval(int num_lines, std::uint64_t seed) {
  if (num_lines < 1 || num_lines > num_keys) {
    throw std::invalid_argument("line retrieval needs 1 to " + std::to_string(num_keys) +
                                " lines, not " + std::to_string(num_lines));
  }
  random_stream random(seed);
  const auto keys = draw_distinct(num_lines, num_keys, random);
  const auto numbers = draw_distinct(num_lines, count_of_numbers, random);

  line_retrieval_prompt prompt;
  prompt.context =
      "Here is a record of lines. Every line has a name and a number, its REGISTER_CONTENT. "
      "Remember them all; "
      "afterwards you are asked for the number of one line.\n\n";
  const auto line_text = [&](std::size_t i) {
    return "line " + key_text(keys[i]) + ": REGISTER_CONTENT is <" +
           std::to_string(smallest_number + numbers[i]) + ">\n";
  };
  for (std::size_t i = 0; i < keys.size(); ++i) {
    prompt.context += line_text(i);
  }
  const auto asked = static_cast<std::size_t>(random.below(keys.size()));
  prompt.line = static_cast<int>(asked);
  prompt.key = key_text(keys[asked]);
  prompt.expected = smallest_number + numbers[asked];
  prompt.recalled = "\nSome of the lines again:\n";
  int recalled = 0;
  for (const int line : draw_distinct(num_lines, num_lines, random)) {
    if (line != prompt.line && recalled < max_recalled_lines) {
      prompt.recalled += line_text(static_cast<std::size_t>(line));
      ++recalled;
    }
  }
  prompt.question =
      "\nWhat is the REGISTER_CONTENT in line " + prompt.key + "? Answer with the number only.";
  prompt.answer_prefix = "line " + prompt.key + ": REGISTER_CONTENT is <";
  return prompt;
}

std::optional<int> parse_number(std::string_view generated) {
  constexpr std::string_view digits = "0123456789";
  const auto first = generated.find_first_of(digits);
  if (first == std::string_view::npos) {
    return std::nullopt;
  }
  const auto run = generated.substr(first, generated.find_first_not_of(digits, first) - first);
  int number = 0;
  const auto [end, error] = std::from_chars(run.data(), run.data() + run.size(), number);
  return error == std::errc() ? std::optional<int>(number) : std::nullopt;
}

}  // namespace zipcache_llama
