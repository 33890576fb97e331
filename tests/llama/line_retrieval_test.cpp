#include "line_retrieval.hpp"

#include <algorithm>
#include <set>
#include <sstream>

#include "support/catch.hpp"

using namespace zipcache_llama;

TEST_CASE("line retrieval: the seed decides everything", "[llama][retrieval]") {
  const auto a = make_line_retrieval(50, 4);
  const auto b = make_line_retrieval(50, 4);
  CHECK(a.context == b.context);
  CHECK(a.question == b.question);
  CHECK(a.context != make_line_retrieval(50, 5).context);
}

TEST_CASE("line retrieval: keys and numbers are distinct and the answer is in the record",
          "[llama][retrieval]") {
  const int count = GENERATE(1, 20, 4096);
  const auto prompt = make_line_retrieval(count, 1);
  std::set<std::string> keys;
  std::set<std::string> numbers;
  std::istringstream lines(prompt.context);
  int found = 0;
  for (std::string line; std::getline(lines, line);) {
    if (line.rfind("line ", 0) != 0) {
      continue;
    }
    const auto colon = line.find(": REGISTER_CONTENT is <");
    REQUIRE(colon != std::string::npos);
    keys.insert(line.substr(5, colon - 5));
    numbers.insert(line.substr(colon));
    if (line.substr(5, colon - 5) == prompt.key) {
      CHECK(is_retrieved(prompt, line));
      CHECK(found == prompt.line);
    }
    ++found;
  }
  CHECK(found == count);
  CHECK(keys.size() == static_cast<std::size_t>(count));
  CHECK(numbers.size() == static_cast<std::size_t>(count));
  CHECK(prompt.question.find(prompt.key) != std::string::npos);
  CHECK(prompt.recalled.find(prompt.key) == std::string::npos);  // the answer is not given away
  CHECK(std::count(prompt.recalled.begin(), prompt.recalled.end(), '<') ==
        std::min(count - 1, max_recalled_lines));
}

TEST_CASE("line retrieval: as many lines as there are keys, no more", "[llama][retrieval]") {
  CHECK(max_retrieval_lines() >= 3600);
  CHECK_THROWS_AS(make_line_retrieval(0, 1), std::invalid_argument);
  CHECK_THROWS_AS(make_line_retrieval(max_retrieval_lines() + 1, 1), std::invalid_argument);
}

TEST_CASE("line retrieval: the first number counts", "[llama][retrieval]") {
  CHECK(parse_number("12345>") == 12345);
  CHECK(parse_number("The answer is <54321>, not 1.") == 54321);
  CHECK_FALSE(parse_number("none"));
  CHECK_FALSE(parse_number(""));
  CHECK_FALSE(parse_number("99999999999999999999"));
}
