// What the model calls in every layer. The KV cache lives behind it.
#pragma once

namespace zipcache_llama {

struct attention_shape {
  int num_layers = 0;
  int num_qo_heads = 0;
  int num_kv_heads = 0;  // divides num_qo_heads
  int head_dim = 0;
};

class attention {
 public:
  virtual ~attention() = default;

  // Causal attention of `len` new tokens at positions [start, start + len) over all tokens before
  // and among them. A forward pass calls this once for each layer, in order, with all of its
  // tokens.
  // @param[in]  q    [len, num_qo_heads, head_dim], after RoPE, row-major
  // @param[in]  k    [len, num_kv_heads, head_dim], after RoPE
  // @param[in]  v    [len, num_kv_heads, head_dim]
  // @param[out] out  [len, num_qo_heads, head_dim]
  virtual void attend(int layer, int start, int len, const float* q, const float* k, const float* v,
                      float* out) = 0;
};

}  // namespace zipcache_llama
