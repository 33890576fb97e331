// BitDecoding's decode attention on packed keys and values, in the shapes of `attend/cuda`: a
// program of its own, since its kernels want compiler flags of their own. Keys are packed by
// channel and values by token, in groups of 128 that have a step and a minimum of 16 bits each: the
// one layout that its Python interface reaches. A call is what that interface launches: attention
// over the splits of the context, with the 4 query heads of a KV head as 4 rows, and the kernel
// that combines the splits. All of the context is packed; rows that wait for their group are not in
// it.
//
//     zipcache_bitdecoding_peer [--bits=4|2] [BATCHxKV_LEN ...]
//
// Prints a JSON line for each shape.
#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <functional>
#include <set>
#include <string_view>
#include <vector>

#include <cuda_runtime.h>
#include <flash_fwd_launch_template.h>

#include "support/timed_graph.cuh"

using zipcache_bench::check_cuda;
using zipcache_bench::device_array;
using f16 = zipcache::half;

namespace {

constexpr int num_qo_heads = 32, num_kv_heads = 8, head_dim = 128;
constexpr int query_group = num_qo_heads / num_kv_heads;
constexpr int quantization_group = 128;
constexpr int by_channel = 1;  // the quantization mode of keys
constexpr int most_splits = 128;
constexpr int64_t tokens_of_block = 256;
const float scale = 1.0f / std::sqrt(static_cast<float>(head_dim));

/// Probabilities and the output are rounded to 11 bits: 5e-4. A value beside the middle of two
/// codes may take the other one, for the kernel divides approximately. A key that is lost, or one
/// weight for all keys, is an error of 0.03 and more.
constexpr double allowed_error = 0.01;

struct step_shape {
  int64_t batch, kv_len;
};

/// Keys and values before they are packed. [batch, kv_len, num_kv_heads, head_dim]
struct source_tensors {
  device_array<f16> k, v;

  /// Outlier channels spread the scores by 1. Values have none, they would hide the other channels.
  source_tensors(step_shape shape, uint64_t seed)
      : k(zipcache_bench::make_device_tensor<f16>(count(shape), head_dim, seed)),
        v(zipcache_bench::make_device_tensor<f16>(count(shape), 1, seed + 1)) {}

  static int64_t count(step_shape shape) {
    return shape.batch * shape.kv_len * num_kv_heads * head_dim;
  }
};

/// One set of packed keys and values.
template <int bits>
class packed_tensors {
 public:
  packed_tensors(step_shape shape, const source_tensors& source)
      : shape_(shape),
        k_(words(shape)),
        v_(words(shape)),
        k_params_(pairs(shape)),
        v_params_(pairs(shape)) {
    Flash_fwd_params params = describe();
    params.h = num_kv_heads;
    params.k_ptr = source.k.data();
    params.v_ptr = source.v.data();
    params.k_batch_stride = params.v_batch_stride = shape.kv_len * num_kv_heads * head_dim;
    params.k_row_stride = params.v_row_stride = num_kv_heads * head_dim;
    params.k_head_stride = params.v_head_stride = head_dim;
    run_kvcache_qpack_hdim128<cutlass::half_t, by_channel, bits, quantization_group>(params,
                                                                                     nullptr);
    check_cuda("cudaDeviceSynchronize", cudaDeviceSynchronize());
  }

  /// What both kernels are told of the packed tensors.
  Flash_fwd_params describe() const {
    Flash_fwd_params params{};
    params.b = static_cast<int>(shape_.batch);
    params.h_k = num_kv_heads;
    params.h_h_k_ratio = 1;  // query heads are rows, see attention_call
    params.d = head_dim;
    params.seqlen_k = static_cast<int>(shape_.kv_len);
    params.group_size = quantization_group;
    params.is_seqlens_k_cumulative = true;
    params.page_block_size = 1;

    params.K_pack_ptr = k_.data();  // [batch, kv_len / codes_of_word, num_kv_heads, head_dim]
    params.K_pack_batch_stride = shape_.kv_len / codes_of_word * num_kv_heads * head_dim;
    params.K_pack_row_stride = num_kv_heads * head_dim;
    params.K_pack_head_stride = head_dim;
    params.k_params_ptr = k_params_.data();  // [batch, kv_len / group, num_kv_heads, head_dim]
    params.k_params_batch_stride = shape_.kv_len / quantization_group * num_kv_heads * head_dim;
    params.k_params_row_stride = num_kv_heads * head_dim;
    params.k_params_head_stride = head_dim;
    params.k_params_dim_stride = 1;

    params.v_pack_ptr = v_.data();  // [batch, kv_len, num_kv_heads, head_dim / codes_of_word]
    params.v_pack_batch_stride = shape_.kv_len * num_kv_heads * head_dim / codes_of_word;
    params.v_pack_row_stride = num_kv_heads * head_dim / codes_of_word;
    params.v_pack_head_stride = head_dim / codes_of_word;
    params.v_params_ptr = v_params_.data();  // [batch, head_dim / group, num_kv_heads, kv_len]
    params.v_params_batch_stride = num_kv_heads * shape_.kv_len;
    params.v_params_dim_stride = num_kv_heads * shape_.kv_len;
    params.v_params_head_stride = shape_.kv_len;
    params.v_params_row_stride = 1;
    return params;
  }

  int64_t bytes() const {
    return static_cast<int64_t>(2 * (k_.size() + v_.size()) +
                                4 * (k_params_.size() + v_params_.size()));
  }

 private:
  static constexpr int64_t codes_of_word = 16 / bits;
  static size_t words(step_shape shape) {
    return static_cast<size_t>(source_tensors::count(shape) / codes_of_word);
  }
  static size_t pairs(step_shape shape) {
    return static_cast<size_t>(source_tensors::count(shape) / quantization_group);
  }

  step_shape shape_;
  device_array<uint16_t> k_, v_;
  device_array<uint32_t> k_params_, v_params_;  // two steps or two minima
};

/// A query and the memory for what comes of it.
class attention_call {
 public:
  explicit attention_call(step_shape shape)
      : q_(zipcache_bench::make_device_tensor<f16>(shape.batch * num_qo_heads * head_dim, 1, 3)),
        out_(q_.size()),
        logsums_(static_cast<size_t>(shape.batch * num_qo_heads)),
        split_outs_(most_splits * q_.size()),
        split_logsums_(most_splits * logsums_.size()) {}

  template <int bits>
  void operator()(cudaStream_t stream, const packed_tensors<bits>& packed, int num_splits) const {
    Flash_fwd_params params = packed.describe();
    params.h = num_kv_heads;
    params.seqlen_q = query_group;
    params.seqlen_q_rounded = 128;
    params.seqlen_k_rounded = params.seqlen_k;
    params.d_rounded = head_dim;
    params.q_ptr = q_.data();
    params.o_ptr = out_.data();
    params.q_batch_stride = params.o_batch_stride = num_qo_heads * head_dim;
    params.q_head_stride = params.o_head_stride = query_group * head_dim;
    params.q_row_stride = params.o_row_stride = head_dim;
    params.softmax_lse_ptr = logsums_.data();
    params.oaccum_ptr = split_outs_.data();
    params.softmax_lseaccum_ptr = split_logsums_.data();
    params.scale_softmax = scale;
    params.scale_softmax_log2 = scale * static_cast<float>(M_LOG2E);
    params.window_size_left = params.window_size_right = -1;
    params.num_splits = num_splits;
    run_mha_fwd_splitkv_dispatch<cutlass::half_t, head_dim, /*Is_causal=*/false, by_channel, bits,
                                 quantization_group>(params, stream);
  }

  const device_array<f16>& q() const { return q_; }
  const device_array<f16>& out() const { return out_; }

 private:
  device_array<f16> q_, out_;  // [batch, num_qo_heads, head_dim]
  device_array<float> logsums_, split_outs_, split_logsums_;
};

/// Rows of head_dim values that lie `pitch` values apart on the GPU, as floats.
std::vector<float> read_rows(const f16* rows, int64_t num_rows, int64_t pitch) {
  std::vector<f16> read(static_cast<size_t>(num_rows * head_dim));
  constexpr size_t row_bytes = head_dim * sizeof(f16);
  check_cuda("cudaMemcpy2D",
             cudaMemcpy2D(read.data(), row_bytes, rows, static_cast<size_t>(pitch) * sizeof(f16),
                          row_bytes, static_cast<size_t>(num_rows), cudaMemcpyDeviceToHost));
  std::vector<float> result(read.size());
  std::transform(read.begin(), read.end(), result.begin(),
                 [](f16 x) { return zipcache::to_float(x); });
  return result;
}

/// Replaces a group by what its codes stand for, as BitDecoding's packing and unpacking define it.
void round_to_codes(float* group, int64_t stride, int bits) {
  float low = group[0], high = group[0];
  for (int64_t i = 0; i < quantization_group; ++i) {
    low = std::min(low, group[i * stride]);
    high = std::max(high, group[i * stride]);
  }
  const auto levels = static_cast<float>((1 << bits) - 1);
  const float codes_of_unit = high > low ? levels / (high - low) : 0.0f;
  const auto in_half = [](float x) { return zipcache::to_float(zipcache::from_float<f16>(x)); };
  const float step = high > low ? in_half(1.0f / codes_of_unit) : 0.0f;
  for (int64_t i = 0; i < quantization_group; ++i) {
    float& x = group[i * stride];
    const float code = std::clamp(std::round((x - low) * codes_of_unit), 0.0f, levels);
    x = in_half(std::fma(code, step, low));
  }
}

/// The last KV head of the last sequence, attended to in double on what the codes stand for.
class reference {
 public:
  reference(step_shape shape, const source_tensors& source, const attention_call& call, int bits)
      : first_query_((shape.batch * num_qo_heads - query_group) * head_dim) {
    constexpr int64_t pitch = num_kv_heads * head_dim;
    const int64_t first = ((shape.batch - 1) * shape.kv_len + 1) * pitch - head_dim;
    std::vector<float> k = read_rows(source.k.data() + first, shape.kv_len, pitch);
    std::vector<float> v = read_rows(source.v.data() + first, shape.kv_len, pitch);
    for (int64_t token = 0; token < shape.kv_len; token += quantization_group) {
      for (int64_t i = 0; i < head_dim; ++i)
        round_to_codes(&k[token * head_dim + i], head_dim, bits);
    }
    for (int64_t token = 0; token < shape.kv_len; ++token)
      round_to_codes(&v[token * head_dim], 1, bits);
    const std::vector<float> q = read_rows(call.q().data() + first_query_, query_group, head_dim);
    for (int64_t row = 0; row < query_group; ++row) attend(&q[row * head_dim], k, v);
  }

  /// Relative L2 error of what the last call wrote, for each of the 4 warps that share a tile's
  /// channels, and of all channels. Infinite where that is not a number.
  std::array<double, 5> errors(const attention_call& call) const {
    const std::vector<float> out =
        read_rows(call.out().data() + first_query_, query_group, head_dim);
    std::array<double, 5> error{}, norm{};
    for (size_t i = 0; i < out.size(); ++i) {
      const double difference = double{out[i]} - out_[i];
      for (const size_t part : {i % 32 / 8, size_t{4}}) {
        error[part] += difference * difference;
        norm[part] += out_[i] * out_[i];
      }
    }
    for (size_t part = 0; part < error.size(); ++part) {
      const double relative = std::sqrt(error[part] / norm[part]);
      error[part] = std::isfinite(relative) ? relative : INFINITY;
    }
    return error;
  }

 private:
  void attend(const float* q, const std::vector<float>& k, const std::vector<float>& v) {
    std::vector<double> weights(k.size() / head_dim);
    for (size_t token = 0; token < weights.size(); ++token) {
      double score = 0.0;
      for (size_t i = 0; i < head_dim; ++i) score += double{q[i]} * double{k[token * head_dim + i]};
      weights[token] = score * double{scale};
    }
    const double maximum = *std::max_element(weights.begin(), weights.end());
    std::array<double, head_dim> out{};
    double sum = 0.0;
    for (size_t token = 0; token < weights.size(); ++token) {
      const double weight = std::exp(weights[token] - maximum);
      for (size_t i = 0; i < head_dim; ++i) out[i] += weight * double{v[token * head_dim + i]};
      sum += weight;
    }
    for (const double x : out) out_.push_back(x / sum);
  }

  int64_t first_query_;
  std::vector<double> out_;  // [query_group, head_dim]
};

/// Splits that BitDecoding chooses: the fewest that fill waves of two blocks a multiprocessor at
/// least 85 % as well as the best number does. It counts blocks of 128 tokens, though the kernel's
/// have 256.
int chosen_splits(step_shape shape, int num_multiprocessors) {
  const int64_t places = 2 * num_multiprocessors;
  const int64_t items = shape.batch * num_kv_heads;
  if (10 * items >= 8 * places) return 1;
  const int64_t blocks = shape.kv_len / 128;
  const auto blocks_of_split = [&](int64_t splits) { return (blocks + splits - 1) / splits; };
  std::vector<std::array<float, 2>> fills;  // splits and how full their waves are
  float best = 0.0f;
  for (int64_t splits = 1; splits <= std::min({int64_t{most_splits}, places, blocks}); ++splits) {
    if (splits > 1 && blocks_of_split(splits) == blocks_of_split(splits - 1)) continue;
    const float waves = static_cast<float>(items * splits) / static_cast<float>(places);
    fills.push_back({static_cast<float>(splits), waves / std::ceil(waves)});
    best = std::max(best, fills.back()[1]);
  }
  for (const auto& [splits, fill] : fills) {
    if (fill >= 0.85 * best) return static_cast<int>(splits);
  }
  return 1;
}

/// Its own choice, powers of two, and what fills one to eight waves.
std::set<int> tried_splits(step_shape shape, int num_multiprocessors) {
  std::set<int> tried = {chosen_splits(shape, num_multiprocessors)};
  const int64_t most = std::min<int64_t>(most_splits, shape.kv_len / tokens_of_block);
  for (int64_t splits = 1; splits <= most; splits *= 2) tried.insert(static_cast<int>(splits));
  for (int64_t waves = 1; waves <= 8; ++waves) {
    const int64_t splits = waves * 2 * num_multiprocessors / (shape.batch * num_kv_heads);
    tried.insert(static_cast<int>(std::clamp<int64_t>(splits, 1, most)));
  }
  return tried;
}

double median_seconds(zipcache_bench::timed_graph& graph) {
  std::array<double, 15> samples{};
  for (int warm_up = 0; warm_up < 3; ++warm_up) graph.seconds();
  for (double& sample : samples) sample = graph.seconds();
  std::sort(samples.begin(), samples.end());
  return samples[samples.size() / 2];
}

template <int bits>
void time_shape(step_shape shape) {
  const int num_multiprocessors = zipcache::detail::num_multiprocessors();
  const attention_call call(shape);
  // Enough sets to outgrow the caches several times. The last one's source stays for the reference.
  std::vector<packed_tensors<bits>> sets;
  int64_t bytes = 0;
  source_tensors source(shape, 10);
  while (true) {
    sets.emplace_back(shape, source);
    bytes += sets.back().bytes();
    if (bytes >= int64_t{250} << 20 || sets.size() == 64) break;
    source = source_tensors(shape, 10 * sets.size() + 10);
  }
  const reference expected(shape, source, call, bits);

  const int chosen = chosen_splits(shape, num_multiprocessors);
  double fastest = INFINITY, seconds_of_chosen = 0.0;
  int fastest_splits = 0;
  std::array<double, 5> worst{};
  for (const int splits : tried_splits(shape, num_multiprocessors)) {
    call(nullptr, sets.back(), splits);
    check_cuda("cudaDeviceSynchronize", cudaDeviceSynchronize());
    const std::array<double, 5> errors = expected.errors(call);
    for (size_t part = 0; part < errors.size(); ++part)
      worst[part] = std::max(worst[part], errors[part]);
    zipcache_bench::timed_graph graph(
        static_cast<int>(2 * sets.size()), [&](cudaStream_t stream, int i) {
          call(stream, sets[static_cast<size_t>(i) % sets.size()], splits);
        });
    const double seconds = median_seconds(graph);
    if (splits == chosen) seconds_of_chosen = seconds;
    if (seconds < fastest) {
      fastest = seconds;
      fastest_splits = splits;
    }
  }
  if (worst[4] > allowed_error) {
    std::fprintf(stderr,
                 "bitdecoding: %d bits, %lld x %lld: the output is off by %g; by %g, %g, %g and %g "
                 "in the channels of each warp (channel %% 32 / 8)\n",
                 bits, static_cast<long long>(shape.batch), static_cast<long long>(shape.kv_len),
                 worst[4], worst[0], worst[1], worst[2], worst[3]);
  }
  std::printf(
      "{\"peer\": \"bitdecoding\", \"bits\": %d, \"batch\": %lld, \"kv_len\": %lld, "
      "\"microseconds\": %.2f, \"splits\": %d, \"chosen_splits\": %d, "
      "\"microseconds_of_chosen\": %.2f, \"megabytes\": %.1f, \"sets\": %d, "
      "\"relative_error\": %g, \"allowed_error\": %g}\n",
      bits, static_cast<long long>(shape.batch), static_cast<long long>(shape.kv_len),
      1e6 * fastest, fastest_splits, chosen, 1e6 * seconds_of_chosen,
      1e-6 * static_cast<double>(sets[0].bytes()), static_cast<int>(sets.size()),
      std::min(worst[4], 1e9), allowed_error);
  std::fflush(stdout);
}

step_shape parse_shape(const char* text) {
  char* rest = nullptr;
  step_shape shape{std::strtoll(text, &rest, 10), 0};
  if (*rest == 'x') shape.kv_len = std::strtoll(rest + 1, &rest, 10);
  zipcache::detail::require(
      *rest == '\0' && shape.batch >= 1 && shape.batch * num_kv_heads <= 65535 &&
          shape.kv_len >= tokens_of_block && shape.kv_len <= int64_t{1} << 24 &&
          shape.kv_len % tokens_of_block == 0,
      std::string(text) + " is not BATCHxKV_LEN with a multiple of 256 tokens");
  return shape;
}

}  // namespace

int main(int argc, char** argv) {
  std::vector<step_shape> shapes;
  std::set<int, std::greater<int>> bits_to_time = {4, 2};
  bool failed = false;
  try {
    for (int i = 1; i < argc; ++i) {
      const std::string_view argument = argv[i];
      if (argument == "--bits=4" || argument == "--bits=2")
        bits_to_time = {argument.back() - '0'};
      else
        shapes.push_back(parse_shape(argv[i]));
    }
    if (shapes.empty()) shapes = {{8, 4096}, {8, 32768}, {8, 131072}, {64, 4096}, {1, 131072}};
    zipcache::detail::check_device();
  } catch (const std::exception& error) {
    std::fprintf(stderr, "bitdecoding: %s\n", error.what());
    return 2;
  }
  for (const int bits : bits_to_time) {
    for (const step_shape shape : shapes) {
      try {
        bits == 4 ? time_shape<4>(shape) : time_shape<2>(shape);
      } catch (const std::exception& error) {
        std::fprintf(stderr, "bitdecoding: %d bits, %lld x %lld: %s\n", bits,
                     static_cast<long long>(shape.batch), static_cast<long long>(shape.kv_len),
                     error.what());
        failed = true;
      }
    }
  }
  return failed ? 1 : 0;
}
