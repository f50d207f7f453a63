// Products, gathers, attention, routing, expert products and optimisers: the GPU against the CPU.

#include "core/ops/matmul.h"

#include "core/ops/attention.h"
#include "core/ops/expert_matmul.h"
#include "core/ops/index.h"
#include "core/ops/norm.h"
#include "core/ops/optim.h"
#include "tests/cuda/parity.h"

namespace switchyard {
namespace {

using namespace testing;
using ops::Rows;

TEST(CudaMatmul, BatchesTransposesAndOddSizes) {
  SKIP_WITHOUT_GPU();
  const std::vector<std::pair<Shape, Shape>> cases = {{{4, 8}, {8, 3}},       {{128, 64}, {64, 256}},
                                                      {{5, 7, 3}, {5, 3, 9}}, {{2, 3, 17, 33}, {33, 41}},
                                                      {{1, 1}, {1, 1}},       {{6, 0}, {0, 5}}};
  for (const DType dtype : kFloatingDTypes)
    for (const auto& [a, b] : cases)
      expect_parity(
          [](const Tensors& in) {
            return Tensors{ops::matmul(in[0], in[1]), ops::matmul(in[1].transpose(-1, -2), in[0].transpose(-1, -2))};
          },
          {random_tensor(a, 1, dtype), random_tensor(b, 2, dtype)}, dtype, "matmul");
}

TEST(CudaMatmul, LinearWithAndWithoutBias) {
  SKIP_WITHOUT_GPU();
  for (const DType dtype : kFloatingDTypes)
    for (const std::int64_t width : {8, 41, 112})
      expect_parity(
          [dtype](const Tensors& in) {
            return Tensors{ops::linear(in[0], in[1], in[2]), ops::linear(in[0], in[1]),
                           ops::linear(in[0], in[1], in[2], ops::compute_dtype(dtype))};
          },
          {random_tensor({3, 5, width}, 1, dtype), random_tensor({24, width}, 2, dtype), random_tensor({24}, 3, dtype)},
          dtype, "linear");
}

TEST(CudaMatmul, RowsAtOddAddresses) {
  SKIP_WITHOUT_GPU();
  // Large enough for the operands and results to go through matrices of even sizes.
  const std::int64_t tokens = 1100, width = 1030, hidden = 1027;
  for (const DType dtype : {DType::f32, DType::bf16})
    expect_parity(
        [](const Tensors& in) {
          const Tensor& x = in[0];
          const Tensor& w = in[1];
          const Tensor y = ops::linear(x, w, in[2], {}, ops::Activation::relu), back = ops::matmul(y, w);
          const Tensor sum = x.clone();
          ops::matmul_into(y, w, sum, 0.5, 1);
          return Tensors{y, back, sum, ops::unary_backward(ops::Activation::relu, y, y),
                         ops::matmul(y.transpose(0, 1), x)};
        },
        {random_tensor({tokens, width}, 1, dtype), random_tensor({hidden, width}, 2, dtype),
         random_tensor({hidden}, 3, dtype)},
        dtype, "matmul of odd rows");
}

TEST(CudaIndex, EmbeddingGatherAndConcat) {
  SKIP_WITHOUT_GPU();
  std::vector<std::int64_t> ids;
  std::vector<std::int32_t> index;
  for (int i = 0; i < 600; ++i) ids.push_back(i % 3 ? (i * i) % 50 : 7);
  for (int i = 0; i < 40 * 4; ++i) index.push_back((i * 5) % 13);
  for (const DType dtype : kFloatingDTypes)
    expect_parity(
        [](const Tensors& in) {
          const Tensor gathered = ops::gather_last(in[2], in[3]);
          return Tensors{ops::embedding(in[0], in[1]), ops::embedding_backward(in[4], in[1], 50), gathered,
                         ops::gather_last_backward(gathered, in[3], 13), ops::concat({in[0], in[0]}, 1)};
        },
        {random_tensor({50, 70}, 1, dtype), Tensor::from(ids, {20, 30}), random_tensor({40, 13}, 2, dtype),
         Tensor::from(index, {40, 4}), random_tensor({20, 30, 70}, 3, dtype)},
        dtype, "index");
}

TEST(CudaRouting, TopKWithTiesAndPlans) {
  SKIP_WITHOUT_GPU();
  for (const std::int64_t tokens : {1, 37, 3000, 70000})
    for (const std::int64_t experts : {1, 5, 32, 128, 130}) {
      const std::int64_t k = std::min<std::int64_t>(experts, 4);
      const Tensor scores = ops::affine(random_tensor({tokens, 2, experts}, 1, DType::i32, 0, 9).to(DType::f32), 0.5);
      const Tensor excluded = random_tensor({tokens, 2, experts}, 2, DType::boolean);
      expect_parity(
          [&](const Tensors& in) {
            const Tensor indices = ops::top_k(in[0], k), masked = ops::top_k(in[0], k, in[1]);
            const auto plan = ops::routing_plan(indices, experts), mask = ops::routing_plan_from_mask(in[1]);
            return Tensors{indices,
                           masked,
                           plan.expert_offsets,
                           plan.pair_to_choice,
                           plan.choice_to_pair,
                           mask.expert_offsets,
                           mask.pair_to_choice,
                           mask.choice_to_pair};
          },
          {scores, excluded}, DType::f32, "routing");
    }
}

TEST(CudaRouting, TopKOfEveryDTypeAndGates) {
  SKIP_WITHOUT_GPU();
  for (const DType dtype : kFloatingDTypes)
    for (const std::int64_t experts : {1, 4, 9, 33, 256, 300}) {
      const std::int64_t k = std::min<std::int64_t>(experts, 5);
      const auto op = [&](const Tensors& in) {
        const Tensor scores = in[0].to(ops::compute_dtype(dtype));
        Tensors all = {ops::top_k(in[0], k)};
        for (const auto function :
             {ops::GateFunction::sigmoid, ops::GateFunction::softmax, ops::GateFunction::softmax_of_chosen}) {
          all.push_back(ops::expert_gates(scores, all[0], function, dtype));
          all.push_back(ops::expert_gates_backward(in[1], scores, all[0], function));
        }
        return all;
      };
      expect_parity(op, {random_tensor({41, 2, experts}, 1, dtype, -3, 3), random_tensor({41, 2, k}, 2, dtype)}, dtype,
                    "gates");
      const auto selection = [](const Tensors& in) {
        const auto mean = ops::mean_selection(in[0]);
        return Tensors{mean.mean, mean.negative_entropy, ops::mean_selection_backward(in[1], in[0], mean.mean)};
      };
      for (const std::int64_t tokens : {41, 3000}) {
        if (dtype == DType::bf16) continue;
        expect_parity(selection, {random_tensor({tokens, 2, experts}, 1, dtype, -3, 3), Tensor::scalar(3, dtype)},
                      dtype, "mean_selection");
      }
    }
}

TEST(CudaExpertMatmul, AllRowsForwardAndBackward) {
  SKIP_WITHOUT_GPU();
  struct Case {
    std::int64_t tokens, slots, experts, k, inner, outer;
    bool by_mask;
  };
  for (const Case& c :
       {Case{40, 1, 4, 2, 24, 40, false}, Case{300, 2, 5, 3, 41, 76, false}, Case{1, 1, 3, 3, 8, 8, false},
        Case{700, 1, 16, 4, 136, 128, false}, Case{50, 2, 6, 6, 16, 24, true}})
    for (const DType dtype : kFloatingDTypes)
      for (const Rows input : {Rows::token, Rows::row, Rows::pair})
        for (const Rows output : {Rows::token, Rows::row, Rows::pair})
          for (const bool gated : {false, true}) {
            const ops::ExpertMatmulOptions options{input, output, ops::Activation::identity};
            const auto rows = [&](Rows r) {
              return r == Rows::token ? c.tokens : r == Rows::row ? c.tokens * c.slots : c.tokens * c.slots * c.k;
            };
            const auto op = [&](const Tensors& in) {
              const auto plan =
                  c.by_mask ? ops::routing_plan_from_mask(in[6]) : ops::routing_plan(ops::top_k(in[0], c.k), c.experts);
              const Tensor gates = gated ? in[4] : Tensor{};
              const Tensor dy = in[5];
              Tensor y = ops::expert_matmul(in[1], in[2], in[3], gates, plan, options);
              if (output == Rows::pair) y = y.slice(0, 0, plan.expert_offsets.to_vector<std::int32_t>().back());
              const auto back =
                  ops::expert_matmul_input_backward(dy, in[1], in[2], in[3], gates, plan, options, true, gated);
              const auto weights = ops::expert_matmul_weight_backward(dy, in[1], gates, plan, options, true);
              Tensors all = {y, back.dgates, weights.dweight, weights.dbias};
              if (!(c.by_mask && input == Rows::pair)) all.push_back(back.dx);
              return all;
            };
            expect_parity(op,
                          {random_tensor({c.tokens, c.slots, c.experts}, 1, DType::f32),
                           random_tensor({rows(input), c.inner}, 2, dtype),
                           random_tensor({c.slots * c.experts, c.inner, c.outer}, 3, dtype),
                           random_tensor({c.slots * c.experts, c.outer}, 4, dtype),
                           random_tensor({c.tokens, c.slots, c.k}, 5, dtype, 0, 1),
                           random_tensor({rows(output), c.outer}, 6, dtype),
                           random_tensor({c.tokens, c.slots, c.experts}, 7, DType::boolean)},
                          dtype, "expert_matmul");
          }
}

// Shapes for which the product over all experts is taken, and a few on the other side of the choice.
TEST(CudaExpertMatmul, FewExpertsPerSlot) {
  SKIP_WITHOUT_GPU();
  struct Case {
    std::int64_t tokens, slots, experts, k, width, head_width;
  };
  for (const Case& c :
       {Case{63, 2, 4, 2, 40, 16}, Case{64, 2, 4, 2, 40, 16}, Case{300, 3, 5, 2, 41, 76}, Case{200, 1, 1, 1, 24, 9},
        Case{200, 2, 7, 2, 24, 9}, Case{130, 4, 4, 2, 64, 112}, Case{9000, 2, 6, 2, 8, 400} /* in several parts */})
    for (const DType dtype : kFloatingDTypes)
      for (const bool up : {false, true})
        for (const bool gated : {false, true}) {
          const ops::ExpertMatmulOptions options{up ? Rows::token : Rows::row, up ? Rows::row : Rows::token,
                                                 ops::Activation::identity};
          const std::int64_t inner = up ? c.width : c.head_width, outer = up ? c.head_width : c.width;
          const auto op = [&](const Tensors& in) {
            const auto plan = ops::routing_plan(in[0], c.experts);
            const Tensor gates = gated ? in[4] : Tensor{};
            const Tensor y = ops::expert_matmul(in[1], in[2], {}, gates, plan, options);
            const Tensor transposed = ops::expert_matmul(in[1], in[3].transpose(1, 2), {}, gates, plan, options);
            const auto back =
                ops::expert_matmul_input_backward(in[5], in[1], in[2], {}, gates, plan, options, true, gated);
            const auto weights = ops::expert_matmul_weight_backward(in[5], in[1], gates, plan, options, false);
            return Tensors{y, transposed, back.dx, back.dgates, weights.dweight};
          };
          const std::int64_t token_rows = c.tokens, slot_rows = c.tokens * c.slots;
          expect_parity(op,
                        {random_tensor({c.tokens, c.slots, c.k}, 1, DType::i32, 0, static_cast<double>(c.experts)),
                         random_tensor({up ? token_rows : slot_rows, inner}, 2, dtype),
                         random_tensor({c.slots * c.experts, inner, outer}, 3, dtype),
                         random_tensor({c.slots * c.experts, outer, inner}, 4, dtype),
                         random_tensor({c.tokens, c.slots, c.k}, 5, dtype, 0, 1),
                         random_tensor({up ? slot_rows : token_rows, outer}, 6, dtype)},
                        dtype, "expert_matmul");
        }
}

// Widths for every tile, aligned to 16 and to 8 bytes, in both orientations of the weight; experts of 0 to 1500 pairs.
TEST(CudaExpertMatmul, EveryWidthOfTheTensorCores) {
  SKIP_WITHOUT_GPU();
  constexpr std::int64_t kTokens = 1500, kExperts = 7;
  std::vector<std::int32_t> chosen;
  for (std::int32_t token = 0; token < kTokens; ++token) {
    chosen.push_back(token % 10 == 0 ? 1 : token % 7 == 0 ? 5 : 0);
    chosen.push_back(token % 3 == 0 ? 2 : 3);
  }
  const Tensor indices = Tensor::from(chosen, {kTokens, 2});
  for (const std::int64_t inner : {64, 76, 200})
    for (const std::int64_t outer : {60, 76, 112, 128, 256, 300, 584})
      expect_parity(
          [&](const Tensors& in) {
            const auto plan = ops::routing_plan(in[0], kExperts);
            const ops::ExpertMatmulOptions up{Rows::token, Rows::pair, ops::Activation::relu};
            const ops::ExpertMatmulOptions down{Rows::pair, Rows::token, ops::Activation::identity,
                                                ops::Activation::relu};
            const Tensor y = ops::expert_matmul(in[1], in[2], in[3], in[4], plan, up);
            const Tensor z = ops::expert_matmul(y, in[2].transpose(1, 2), {}, in[4], plan, down);
            const Tensor hidden = ops::unary(ops::Unary::relu, in[5]);
            const auto back = ops::expert_matmul_input_backward(in[1], hidden, in[2].transpose(1, 2), {}, in[4], plan,
                                                                down, true, true);
            return Tensors{y, z, back.dx, back.dgates};
          },
          {indices, random_tensor({kTokens, inner}, 1, DType::bf16),
           random_tensor({kExperts, inner, outer}, 2, DType::bf16), random_tensor({kExperts, outer}, 3, DType::bf16),
           random_tensor({kTokens, 1, 2}, 4, DType::bf16, 0, 1), random_tensor({2 * kTokens, outer}, 5, DType::bf16)},
          DType::bf16, "expert_matmul");
}

TEST(CudaExpertMatmul, ActivationInTheEpilogue) {
  SKIP_WITHOUT_GPU();
  for (const DType dtype : kFloatingDTypes)
    for (const auto activation : {ops::Activation::relu, ops::Activation::gelu, ops::Activation::silu})
      expect_parity(
          [&](const Tensors& in) {
            const auto plan = ops::routing_plan(ops::top_k(in[0], 2), 6);
            return Tensors{ops::expert_matmul(in[1], in[2].transpose(1, 2), in[3], {}, plan,
                                              {Rows::token, Rows::pair, activation})};
          },
          {random_tensor({90, 6}, 1, DType::f32), random_tensor({90, 48}, 2, dtype),
           random_tensor({6, 32, 48}, 3, dtype), random_tensor({6, 32}, 4, dtype)},
          dtype, "activation");
}

TEST(CudaAttention, EveryOptionForwardAndBackward) {
  SKIP_WITHOUT_GPU();
  for (const DType dtype : kFloatingDTypes)
    for (int bits = 0; bits < 32; ++bits)
      for (const std::int64_t width : {12, 41, 128}) {
        const bool causal = bits & 1, padded = bits & 2, masked = bits & 4, positions = bits & 8, dropped = bits & 16;
        const std::int64_t batch = 2, queries = 37, heads = 2, offset = causal ? 5 : 0, keys = queries + offset;
        const auto op = [&](const Tensors& in) {
          ops::AttentionOptions options;
          options.scale = 0.3;
          options.causal = causal;
          options.query_offset = offset;
          if (padded) options.key_padding = in[3];
          if (masked) options.mask = in[4];
          if (positions) {
            options.position_key = in[5];
            options.position_zero = queries + offset - 1;
          }
          if (dropped) {
            options.dropout = 0.2;
            options.stream = Generator(3, in[0].device()).next(batch * heads * queries * keys);
          }
          const auto result = ops::attention(in[0], in[1], in[2], options);
          const auto g = ops::attention_backward(in[6], in[0], in[1], in[2], result, options);
          return Tensors{result.out, g.dquery,        g.dkey,
                         g.dvalue,   g.dposition_key, ops::attention_probabilities(in[0], in[1], options)};
        };
        expect_parity(
            op,
            {random_tensor({batch, queries, heads, width}, 1, dtype),
             random_tensor({batch, keys, heads, width}, 2, dtype), random_tensor({batch, keys, heads, width}, 3, dtype),
             random_tensor({batch, keys}, 4, DType::boolean), random_tensor({queries, keys}, 5, DType::boolean),
             random_tensor({2 * (queries + offset), heads, width}, 6, dtype),
             random_tensor({batch, queries, heads, width}, 7, dtype)},
            dtype, "attention");
      }
}

/// Lengths that fill several tiles and parts of one, every kind of mask by itself, heads cut out of one tensor.
TEST(CudaAttention, LongSequences) {
  SKIP_WITHOUT_GPU();
  struct Case {
    std::int64_t width, queries, keys;
    bool causal, padded, masked, positions, fused;
    double dropout;
  };
  const std::vector<Case> cases = {
      {64, 300, 300, true, false, false, false, true, 0},    {112, 300, 300, true, false, false, false, true, 0},
      {112, 130, 577, true, false, false, false, false, 0},  {80, 257, 333, false, true, false, false, false, 0},
      {128, 384, 384, true, true, true, false, false, 0},    {128, 200, 129, false, false, false, false, false, 0.2},
      {76, 300, 300, true, false, false, false, true, 0},    {72, 190, 190, true, false, false, false, false, 0.1},
      {112, 200, 200, true, false, false, true, false, 0},   {41, 150, 333, true, true, false, true, false, 0},
      {128, 150, 200, false, false, true, true, false, 0.1},
  };
  for (const Case& c : cases) {
    SCOPED_TRACE("width " + std::to_string(c.width) + ", queries " + std::to_string(c.queries) + ", keys " +
                 std::to_string(c.keys));
    const std::int64_t batch = 2, heads = 2, offset = c.causal ? c.keys - c.queries : 0;
    const auto op = [&](const Tensors& in) {
      ops::AttentionOptions options;
      options.scale = 0.2;
      options.causal = c.causal;
      options.query_offset = offset;
      if (c.padded) options.key_padding = in[3];
      if (c.masked) options.mask = in[4];
      if (c.positions) {
        options.position_key = in[5];
        options.position_zero = c.queries + offset - 1;
      }
      if (c.dropout > 0) {
        options.dropout = c.dropout;
        options.stream = Generator(3, in[0].device()).next(batch * heads * c.queries * c.keys);
      }
      const auto part = [&](int i) { return c.fused ? in[7].select(2, i) : in[static_cast<std::size_t>(i)]; };
      const auto result = ops::attention(part(0), part(1), part(2), options);
      const auto g = ops::attention_backward(in[6], part(0), part(1), part(2), result, options);
      return Tensors{result.out, result.log_normalizer, g.dquery, g.dkey, g.dvalue, g.dposition_key};
    };
    expect_parity(
        op,
        {random_tensor({batch, c.queries, heads, c.width}, 1, DType::bf16),
         random_tensor({batch, c.keys, heads, c.width}, 2, DType::bf16),
         random_tensor({batch, c.keys, heads, c.width}, 3, DType::bf16),
         random_tensor({batch, c.keys}, 4, DType::boolean), random_tensor({c.queries, c.keys}, 5, DType::boolean),
         random_tensor({2 * (c.queries + c.keys), heads, c.width}, 6, DType::bf16),
         random_tensor({batch, c.queries, heads, c.width}, 7, DType::bf16),
         random_tensor({batch, c.queries, 3, heads, c.width}, 8, DType::bf16)},
        DType::bf16, "attention");
  }
}

TEST(CudaAttention, RopeThereAndBack) {
  SKIP_WITHOUT_GPU();
  for (const DType dtype : kFloatingDTypes)
    expect_parity(
        [&](const Tensors& in) {
          const auto tables =
              ops::rope_tables(20, 6, 10000, dtype == DType::f64 ? DType::f64 : DType::f32, in[0].device());
          return Tensors{ops::rope(in[0], tables, 4), ops::rope(in[0], tables, 2, true)};
        },
        {random_tensor({2, 13, 3, 11}, 1, dtype)}, dtype, "rope");
}

TEST(CudaOptim, AdamWSgdNormAndClipping) {
  SKIP_WITHOUT_GPU();
  for (const DType dtype : kFloatingDTypes) {
    const DType full = dtype == DType::f64 ? DType::f64 : DType::f32;
    const bool rounded = dtype == DType::bf16;
    const auto op = [&](const Tensors& in) {
      std::vector<ops::AdamWSlot> adamw;
      std::vector<ops::SgdSlot> sgd;
      Tensors results;
      for (int i = 0; i < 60; ++i) {  // more than one launch's table holds
        const std::int64_t size = i == 3 ? 9001 : 5 + i;
        const auto state = [&](double value) { return Tensor::full({size}, value, full, in[0].device()); };
        const Tensor p = in[0].slice(0, 0, size).clone(), q = p.clone(), g = in[1].slice(0, 0, size).clone();
        const Tensor master = rounded ? p.to(full) : Tensor{}, master2 = rounded ? p.to(full).clone() : Tensor{};
        adamw.push_back({p, g, state(0.1), state(0.2), master, 0.01 * i});
        sgd.push_back({q, g, state(0.3), master2, 0.02});
        results.insert(results.end(), {p, q});
      }
      const Tensor rate = Tensor::full({1}, 0.01, DType::f64, in[0].device());
      const Tensor step = Tensor::full({1}, 3, DType::i64, in[0].device());
      const Tensor norm = ops::global_norm({in[0], in[1], in[1]}), factor = ops::clip_factor(norm, 0.5);
      ops::adamw(adamw, rate, step, factor, 0.9, 0.99, 1e-8);
      ops::sgd(sgd, rate, factor, 0.9);
      results.insert(results.end(), {norm, factor});
      return results;
    };
    expect_parity(op, {random_tensor({9001}, 1, dtype), random_tensor({9001}, 2, dtype)}, dtype, "optim");
  }
}

}  // namespace
}  // namespace switchyard
