#include <boost/json.hpp>

#include "moe/conversion/cost.h"
#include "tests/golden/d2dmoe.h"

namespace switchyard::golden {
namespace {

using Row = std::map<std::string, double>;

std::vector<Row> rows_of(const File& file) {
  const boost::json::array columns = boost::json::parse(file.text("columns")).as_array();
  const Tensor table = file.tensor("table");
  const auto values = table.to_vector<double>();
  check(table.size(1) == static_cast<std::int64_t>(columns.size()), file.name(), ": table and columns differ");
  std::vector<Row> rows(static_cast<std::size_t>(table.size(0)));
  for (std::size_t i = 0; i < values.size(); ++i)
    rows[i / columns.size()][columns[i % columns.size()].as_string().c_str()] = values[i];
  return rows;
}

/// A layer of the row's sizes.
moe::DynamicFeedForward layer_of(Row& row) {
  const auto size = [&row](const char* name) { return static_cast<std::int64_t>(row.at(name)); };
  moe::ExpertWeights weights;
  weights.up = Tensor::zeros({size("E"), size("D"), size("S")});
  weights.down = Tensor::zeros({size("E"), size("S"), size("D")});
  weights.last_bias = Tensor::zeros({size("D")});
  moe::NormRouterOptions router;
  router.hidden = size("width");
  router.depth = size("depth");
  router.bias = row.at("router_bias") != 0;
  return {weights, row.at("relu") != 0 ? ops::Activation::relu : ops::Activation::gelu, router};
}

std::string check_file(const File& file) {
  const auto dense = file.tensor("dense_ffn_flops_one_sequence").to_vector<double>();
  std::vector<Row> rows = rows_of(file);
  for (std::size_t i = 0; i < rows.size(); ++i) {
    Row& row = rows[i];
    const moe::DynamicFeedForward layer = layer_of(row);
    const moe::DynamicCost cost = moe::cost_of(layer);
    const double tokens = row.at("T"), executed = row.at("executed_expert_tokens") / (row.at("B") * tokens);
    EXPECT_DOUBLE_EQ(tokens * cost.without_experts, row.at("cost_without_experts"));
    EXPECT_DOUBLE_EQ(cost.per_expert, row.at("token_expert_cost"));
    EXPECT_DOUBLE_EQ(tokens * cost.per_token(executed), row.at("average_flops"));
    EXPECT_DOUBLE_EQ(tokens * cost.dense, dense[i]);
    EXPECT_DOUBLE_EQ(row.at("B") * tokens * row.at("E"), row.at("total_expert_tokens"));
  }
  return std::to_string(rows.size()) + " rows";
}

TEST(D2dmoeFlops, files) { for_family("d2dmoe_flops", check_file); }

}  // namespace
}  // namespace switchyard::golden
