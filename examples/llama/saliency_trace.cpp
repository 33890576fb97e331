#include "saliency_trace.hpp"

#include <cmath>
#include <cstdint>
#include <numeric>

#include <zipcache/saliency/saliency.hpp>
#include <zipcache/select/budget.hpp>
#include <zipcache/select/select.hpp>

#include "svg_plot.hpp"

namespace zipcache_llama {
namespace {

std::vector<bool> mark_salient(const std::vector<float>& scores, double ratio) {
  const auto count = static_cast<std::int64_t>(scores.size());
  const std::int64_t salient =
      zipcache::salient_share<60>::num_salient(count, {.salient_ratio = ratio});
  std::vector<std::int32_t> tokens(static_cast<std::size_t>(salient));
  zipcache::select({}, scores, 1, {count, salient}, tokens);
  std::vector<bool> marks(scores.size());
  for (const std::int32_t token : tokens) {
    marks[static_cast<std::size_t>(token)] = true;
  }
  return marks;
}

}  // namespace

saliency_trace::saliency_trace(const attention_shape& shape, int layer, int head,
                               double salient_ratio)
    : shape_(shape), layer_(layer), head_(head), salient_ratio_(salient_ratio) {}

void saliency_trace::observe(const attended_layer& layer) {
  if (layer.layer == layer_) {
    accumulated_ = scores(layer, false);
    normalized_ = scores(layer, true);
  }
}

std::vector<float> saliency_trace::scores(const attended_layer& layer, bool normalized) const {
  std::vector<std::int64_t> positions(static_cast<std::size_t>(layer.len));
  std::iota(positions.begin(), positions.end(), std::int64_t{0});
  const zipcache::probe_queries<float> probes{
      zipcache::nhd(layer.q.data(), layer.len, shape_.num_qo_heads, shape_.head_dim), positions};
  const auto keys = zipcache::nhd(layer.k.data(), layer.len, shape_.num_kv_heads, shape_.head_dim);
  const float sm_scale = 1.0F / std::sqrt(static_cast<float>(shape_.head_dim));
  const auto tokens = static_cast<std::size_t>(layer.len);
  const auto heads = static_cast<std::size_t>(shape_.num_kv_heads);
  std::vector<float> by_head(heads * tokens);
  if (normalized) {
    zipcache::saliency<zipcache::normalized_attention, zipcache::per_kv_head>({}, probes, keys,
                                                                              sm_scale, by_head);
  } else {
    zipcache::saliency<zipcache::accumulated_attention, zipcache::per_kv_head>({}, probes, keys,
                                                                               sm_scale, by_head);
  }
  std::vector<float> result(tokens);
  for (std::size_t token = 0; token < tokens; ++token) {
    float sum = 0;
    for (std::size_t head = 0; head < heads; ++head) {
      if (head_ < 0 || head == static_cast<std::size_t>(head_)) {
        sum += by_head[head * tokens + token];
      }
    }
    result[token] = head_ < 0 ? sum / static_cast<float>(heads) : sum;
  }
  return result;
}

std::string saliency_trace::plot(const std::string& title) const {
  const saliency_panel panels[] = {
      {"accumulated attention", accumulated_, mark_salient(accumulated_, salient_ratio_)},
      {"normalized attention", normalized_, mark_salient(normalized_, salient_ratio_)},
  };
  return saliency_plot(title, panels);
}

}  // namespace zipcache_llama
