// SPDX-License-Identifier: Apache-2.0
// Every schema of the library. `_<op>` and `_<op>_backward` are the private pair that devices
// implement; the public operator is composed of it, so that C++, Python and tracing meet the same
// checks.
#include <torch/library.h>

TORCH_LIBRARY(weir, m) {
  m.def(
      "coordinate_descent(Tensor scores, Tensor budget, *, Tensor? mask=None, int n_iters=20, "
      "float eps=0.1, float? eps_init=None, float eps_decay=1.0, str solver=\"iterative\") -> "
      "Tensor");
  m.def(
      "coordinate_descent.number(Tensor scores, float budget, *, Tensor? mask=None, int "
      "n_iters=20, "
      "float eps=0.1, float? eps_init=None, float eps_decay=1.0, str solver=\"iterative\") -> "
      "Tensor");
  m.def(
      "_coordinate_descent(Tensor scores, Tensor budget, Tensor? mask, int n_iters, float eps, "
      "float? eps_init, float eps_decay, str solver) -> (Tensor output, Tensor trace)");
  m.def(
      "_coordinate_descent_backward(Tensor grad, Tensor scores, Tensor budget, Tensor? mask, "
      "Tensor trace, int n_iters, float eps, float? eps_init, float eps_decay, str solver) "
      "-> (Tensor grad_scores, Tensor grad_budget)");
  m.def(
      "prefix_thresholds(Tensor scores, Tensor budgets, int[] lengths, *, int n_iters=20, float "
      "eps=0.1, float? eps_init=None, float eps_decay=1.0, str solver=\"iterative\") -> Tensor");
  m.def(
      "_prefix_thresholds(Tensor scores, Tensor budgets, int[] lengths, int n_iters, float eps, "
      "float? eps_init, float eps_decay, str solver) -> (Tensor thresholds, Tensor trace)");
  m.def(
      "_prefix_thresholds_backward(Tensor grad, Tensor scores, Tensor budgets, Tensor trace, int[] "
      "lengths, int n_iters, float eps, float? eps_init, float eps_decay, str solver) -> Tensor");
  m.def(
      "topk(Tensor scores, int k, *, float coor_descent_k_ratio=1.125, int n_iters=20, float "
      "eps=0.1, "
      "float? eps_init=None, float eps_decay=1.0, Tensor? mask=None, str solver=\"iterative\", "
      "bool non_differentiable=False) "
      "-> (Tensor values, Tensor indices, Tensor coor_descent_values, Tensor gates)");
  m.def(
      "block_sparse_attention(Tensor query, Tensor key, Tensor value, *, Tensor? layout=None, "
      "Tensor? key_mask=None, Tensor? mask=None, Tensor? cu_seqlens=None, Tensor? "
      "cu_seqlens_k=None, Tensor? document_ids=None, int block_size=32, bool causal=False, int? "
      "window=None, int stride=1, int prefix=0, int local=0, float? scale=None) -> Tensor");
  m.def(
      "block_sparse_attention_with_lse(Tensor query, Tensor key, Tensor value, *, Tensor? "
      "layout=None, Tensor? key_mask=None, Tensor? mask=None, Tensor? cu_seqlens=None, Tensor? "
      "cu_seqlens_k=None, Tensor? document_ids=None, int block_size=32, bool causal=False, int? "
      "window=None, int stride=1, int prefix=0, int local=0, float? scale=None) -> (Tensor output, "
      "Tensor lse)");
  m.def(
      "coordinate_descent_attention(Tensor query, Tensor key, Tensor value, Tensor budget, *, "
      "Tensor? key_mask=None, Tensor? mask=None, bool causal=False, int nulls=0, int n_iters=20, "
      "float eps=0.1, "
      "float? "
      "eps_init=None, float eps_decay=1.0, str solver=\"iterative\", bool normalize=False, float? "
      "scale=None) -> Tensor");
  m.def(
      "coordinate_descent_attention.number(Tensor query, Tensor key, Tensor value, float budget, "
      "*, Tensor? key_mask=None, Tensor? mask=None, bool causal=False, int nulls=0, int "
      "n_iters=20, float eps=0.1, "
      "float? "
      "eps_init=None, float eps_decay=1.0, str solver=\"iterative\", bool normalize=False, float? "
      "scale=None) -> Tensor");
  // The lists and the solver: CoordinateDescentAttentionRule.
  m.def(
      "_coordinate_descent_attention(Tensor query, Tensor key, Tensor value, Tensor budget, "
      "Tensor? key_mask, Tensor? mask, int[] integers, float[] numbers, str solver) -> (Tensor "
      "output, Tensor "
      "trace)");
  m.def(
      "_coordinate_descent_attention_backward(Tensor grad, Tensor query, Tensor key, Tensor value, "
      "Tensor budget, Tensor? key_mask, Tensor? mask, Tensor trace, int[] integers, float[] "
      "numbers, str solver) "
      "-> (Tensor grad_query, Tensor grad_key, Tensor grad_value, Tensor grad_budget)");
  // Serves local_attention too. The lists: AttentionTensors and AttentionRule.
  m.def(
      "_block_sparse_attention(Tensor query, Tensor key, Tensor value, Tensor? bias, Tensor?[] "
      "tensors, int[] integers, float[] numbers) -> (Tensor output, Tensor lse)");
  m.def(
      "_block_sparse_attention_backward(Tensor grad, Tensor query, Tensor key, Tensor value, "
      "Tensor? bias, Tensor output, Tensor lse, Tensor?[] tensors, int[] integers, float[] "
      "numbers) -> (Tensor grad_query, Tensor grad_key, Tensor grad_value, Tensor grad_bias)");
  m.def(
      "local_attention(Tensor query, Tensor key, Tensor value, int window_size, *, Tensor? "
      "key_mask=None, Tensor? attn_bias=None, Tensor? inv_freq=None, bool causal=False, int "
      "look_backward=1, int? look_forward=None, bool exact_windowsize=False, float? scale=None, "
      "bool shared_qk=False, bool use_xpos=False, float? xpos_scale_base=None, float dropout=0.0) "
      "-> Tensor");
  m.def(
      "top_k_attention(Tensor query, Tensor key, Tensor value, int k, *, Tensor? key_mask=None, "
      "Tensor? mask=None, bool causal=False, float? scale=None) -> Tensor");
  m.def(
      "_top_k_attention(Tensor query, Tensor key, Tensor value, Tensor? key_mask, Tensor? mask, "
      "int k, bool causal, float scale) -> (Tensor output, Tensor indices, Tensor weights)");
  m.def(
      "_top_k_attention_backward(Tensor grad, Tensor query, Tensor key, Tensor value, Tensor "
      "indices, Tensor weights, float scale) -> (Tensor grad_query, Tensor grad_key, Tensor "
      "grad_value)");
  m.def(
      "low_rank_attention(Tensor route_query, Tensor route_key, Tensor query, Tensor key, Tensor "
      "value, int k, *, Tensor? key_mask=None, Tensor? mask=None, bool causal=False, float? "
      "scale=None, float? route_scale=None, str score=\"softmax\", float eps=0.1, float "
      "k_ratio=1.125) -> Tensor");
  // The lists and the score: LowRankAttentionRule.
  m.def(
      "_low_rank_attention(Tensor route_query, Tensor route_key, Tensor query, Tensor key, Tensor "
      "value, Tensor? key_mask, Tensor? mask, int[] integers, float[] numbers, str score) -> "
      "(Tensor output, Tensor indices, Tensor scores, Tensor weights)");
  m.def(
      "_low_rank_attention_backward(Tensor grad, Tensor route_query, Tensor route_key, Tensor "
      "query, Tensor key, Tensor value, Tensor indices, Tensor scores, Tensor weights, int[] "
      "integers, float[] numbers, str score) -> (Tensor grad_route_query, Tensor grad_route_key, "
      "Tensor grad_query, Tensor grad_key, Tensor grad_value)");
  m.def("l2_rms_norm(Tensor x, Tensor gamma) -> Tensor");
  // Gamma of the computed type.
  m.def("_l2_rms_norm(Tensor x, Tensor gamma) -> (Tensor output, Tensor lengths)");
  m.def(
      "_l2_rms_norm_backward(Tensor grad, Tensor x, Tensor gamma, Tensor lengths) -> (Tensor "
      "grad_x, Tensor grad_gamma)");
  m.def("router_logits(Tensor x, Tensor tokens, *, bool cosine=False, float scale=1.0) -> Tensor");
  // Tokens as they are multiplied: of the computed type, scaled, with cosine of length 1 before.
  m.def("_router_logits(Tensor x, Tensor tokens, bool cosine) -> (Tensor output, Tensor lengths)");
  // A gradient that is not wanted is empty.
  m.def(
      "_router_logits_backward(Tensor grad, Tensor x, Tensor tokens, Tensor output, Tensor "
      "lengths, bool cosine, bool wants_x, bool wants_tokens) -> (Tensor grad_x, Tensor "
      "grad_tokens)");
}
