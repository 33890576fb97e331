// Quantizing by vectors against the scalar definition, bit for bit, on ordinary values and on every
// kind of number that comparisons, roundings and sums treat apart.
#include <cstdint>
#include <cstring>
#include <limits>
#include <vector>

#include <zipcache/detail/quantize_math.hpp>

#include "support/catch.hpp"
#include "support/every_cpu.hpp"
#include "support/generators.hpp"

using namespace zipcache;

namespace {

constexpr int32_t count = 48;  // whole vectors of 8 and of 16

template <class T>
bool same_bits(const std::vector<T>& a, const std::vector<T>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0;
}

/// Rows of ordinary values, rows with more and more special ones among them, and rows of zeros
/// whose signs differ.
std::vector<std::vector<float>> make_rows(float largest) {
  const float infinity = std::numeric_limits<float>::infinity();
  const std::vector<float> special = {
      0.0f,       -0.0f,    infinity,  -infinity, std::numeric_limits<float>::quiet_NaN(),
      largest,    -largest, 0x1p-24f,  -0x1p-24f, 0x1p-140f,
      -0x1p-140f, 65504.0f, -65504.0f, 1.5f,      -2.5f};
  zipcache_test::random_numbers random(5);
  std::vector<std::vector<float>> rows;
  for (int i = 0; i < 4; ++i) {
    std::vector<float>& row = rows.emplace_back(count, i % 2 == 0 ? -0.0f : 0.0f);
    if (i >= 2) row[20] = -row[20];
  }
  for (int i = 0; i < 64; ++i) {
    std::vector<float>& row = rows.emplace_back();
    for (int32_t channel = 0; channel < count; ++channel) {
      const bool is_special = i % 8 >= 4 && random.below(8 - i % 8) == 0;
      row.push_back(
          is_special
              ? special[static_cast<size_t>(random.below(static_cast<int64_t>(special.size())))]
              : static_cast<float>(random.normal()));
    }
  }
  return rows;
}

template <class Element>
std::vector<std::vector<Element>> make_rows_of() {
  std::vector<std::vector<Element>> rows;
  for (const auto& row : make_rows(largest_finite<Element>))
    rows.push_back(zipcache_test::round_to<Element>(row));
  return rows;
}

/// Ranges, largest magnitudes and quotients of all rows, one after the other.
template <class Element>
std::vector<float> statistics_of(const std::vector<std::vector<Element>>& rows) {
  std::vector<float> lowest(count, value_range{}.lowest), highest(count, value_range{}.highest);
  std::vector<float> magnitudes(count, 0.0f), quotients(count), all;
  const std::vector<float> divisors(count, 3.0f);
  const auto append = [&](const std::vector<float>& x) {
    all.insert(all.end(), x.begin(), x.end());
  };
  for (const auto& row : rows) {
    detail::include_row(row.data(), count, lowest.data(), highest.data());
    detail::include_magnitudes(row.data(), count, magnitudes.data());
    detail::divide_row(row.data(), divisors.data(), count, quotients.data());
    const value_range range = detail::range_of(quotients.data(), count);
    for (float& x : quotients)
      if (x != x) x = 0.0f;  // which NaN it is does not matter
    append(lowest);
    append(highest);
    append(magnitudes);
    append(quotients);
    append({range.lowest, range.highest});
  }
  return all;
}

template <int Bits, class Storage>
std::vector<uint8_t> codes_of(const std::vector<std::vector<float>>& rows) {
  std::vector<uint8_t> all, codes(count);
  std::vector<affine_params<Storage>> pairs(count);
  std::vector<float> mins(count), inverse_steps(count);
  for (size_t i = 0; i < rows.size(); ++i) {
    const value_range range = detail::range_of(rows[i].data(), count);
    const auto pair = affine<Bits>::template fit<Storage>(range);
    detail::quantize_group<Bits>(rows[i].data(), count, affine<Bits>::widen(pair), codes.data());
    all.insert(all.end(), codes.begin(), codes.end());
    // A pair for each channel: of the range that it makes with zero.
    for (size_t channel = 0; channel < pairs.size(); ++channel)
      pairs[channel] =
          affine<Bits>::template fit<Storage>(include(include({}, rows[i][channel]), 0.0f));
    detail::widen_pairs(pairs.data(), count, mins.data(), inverse_steps.data());
    detail::quantize_each<Bits>(rows[(i + 1) % rows.size()].data(), count, mins.data(),
                                inverse_steps.data(), codes.data());
    all.insert(all.end(), codes.begin(), codes.end());
  }
  return all;
}

/// Runs `work` by every instruction set and checks that it returns what the scalar loops return.
template <class Work>
void check_every_cpu(Work&& work) {
  const detail::cpu_level before = detail::active_cpu().exchange(detail::cpu_level::scalar);
  const auto expected = work();
  detail::active_cpu() = before;
  zipcache_test::with_every_cpu([&] { CHECK(same_bits(work(), expected)); });
}

template <int Bits>
void check_codes() {
  INFO(Bits << " bits");
  const auto rows = make_rows(std::numeric_limits<float>::max());
  check_every_cpu([&] { return codes_of<Bits, half>(rows); });
  check_every_cpu([&] { return codes_of<Bits, bfloat16>(rows); });
}

}  // namespace

TEST_CASE("quantize: statistics by vectors are those of the scalar loops", "[quantize][vector]") {
  check_every_cpu([rows = make_rows_of<half>()] { return statistics_of(rows); });
  check_every_cpu([rows = make_rows_of<bfloat16>()] { return statistics_of(rows); });
  check_every_cpu([rows = make_rows_of<float>()] { return statistics_of(rows); });
}

TEST_CASE("quantize: codes by vectors are those of the scalar loops", "[quantize][vector]") {
  check_codes<1>();
  check_codes<2>();
  check_codes<3>();
  check_codes<4>();
  check_codes<8>();
}
