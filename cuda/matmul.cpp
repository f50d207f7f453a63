// Dense products by cuBLASLt. Its matrices are column-major; a row-major out [m, n] is the column-major [n, m] of the
// transposed product, so b comes first. The choice of kernel (a heuristic that takes tens of microseconds) is made once
// per problem and kept.

#include "core/kernels/matmul.h"

#include <map>
#include <tuple>

#include "core/kernels/copy.h"
#include "core/kernels/elementwise.h"
#include "core/profiler.h"
#include "cuda/check.h"
#include "cuda/context.h"
#include "cuda/linear_one_row.h"

namespace switchyard::cuda {
namespace {

/// One operand as cuBLASLt sees it.
struct Matrix {
  bool transposed;
  std::int64_t leading;       // elements between columns
  std::int64_t batch_stride;  // elements between matrices
};

/// x [batch, rows, columns] with stride 1 on one of the last two axes, seen as column-major [columns, rows].
Matrix matrix_of(const Tensor& x) {
  const bool row_major = x.stride(2) == 1 && (x.stride(1) >= x.size(2) || x.size(1) == 1);
  return row_major ? Matrix{false, std::max(x.stride(1), x.size(2)), x.stride(0)}
                   : Matrix{true, std::max(x.stride(2), x.size(1)), x.stride(0)};
}

struct Problem {
  int device;
  DType dtype, out_dtype;
  std::int64_t m, n, k, batch;
  Matrix a, b;
  std::int64_t out_leading, out_batch_stride;
  bool bias, relu, accumulates;
  std::uint32_t alignment;  // that all operands have, in bytes, at most 16

  auto key() const {
    return std::tuple(device, dtype, out_dtype, m, n, k, batch, a.transposed, a.leading, a.batch_stride, b.transposed,
                      b.leading, b.batch_stride, out_leading, out_batch_stride, bias, relu, accumulates, alignment);
  }
};

cudaDataType_t data_type(DType dtype) {
  switch (dtype) {
    case DType::f32: return CUDA_R_32F;
    case DType::f64: return CUDA_R_64F;
    case DType::bf16: return CUDA_R_16BF;
    default: fail("matmul: expected a floating dtype (f32, f64, bf16), got ", dtype);
  }
}

/// Descriptors and the chosen kernel of one problem.
class Plan {
 public:
  explicit Plan(const Problem& p, const Context& ctx) {
    const bool f64 = p.dtype == DType::f64;
    // COMPUTE_32F without the fast modes: fp32 products stay fp32, never TF32.
    check_cublas(cublasLtMatmulDescCreate(&operation_, f64 ? CUBLAS_COMPUTE_64F : CUBLAS_COMPUTE_32F,
                                          f64 ? CUDA_R_64F : CUDA_R_32F),
                 "matmul: cublasLtMatmulDescCreate");
    set(CUBLASLT_MATMUL_DESC_TRANSA, p.b.transposed ? CUBLAS_OP_T : CUBLAS_OP_N);
    set(CUBLASLT_MATMUL_DESC_TRANSB, p.a.transposed ? CUBLAS_OP_T : CUBLAS_OP_N);
    if (p.bias) set(CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE, data_type(p.dtype));
    if (p.bias && p.relu) set(CUBLASLT_MATMUL_DESC_EPILOGUE, CUBLASLT_EPILOGUE_RELU_BIAS);
    else if (p.bias) set(CUBLASLT_MATMUL_DESC_EPILOGUE, CUBLASLT_EPILOGUE_BIAS);
    else if (p.relu) set(CUBLASLT_MATMUL_DESC_EPILOGUE, CUBLASLT_EPILOGUE_RELU);
    b_ =
        layout(p.dtype, p.b.transposed ? p.k : p.n, p.b.transposed ? p.n : p.k, p.b.leading, p.batch, p.b.batch_stride);
    a_ =
        layout(p.dtype, p.a.transposed ? p.m : p.k, p.a.transposed ? p.k : p.m, p.a.leading, p.batch, p.a.batch_stride);
    out_ = layout(p.out_dtype, p.n, p.m, p.out_leading, p.batch, p.out_batch_stride);
    choose(p, ctx);
  }

  void set_bias(const void* bias) { set(CUBLASLT_MATMUL_DESC_BIAS_POINTER, bias); }

  void run(const Context& ctx, const Tensor& a, const Tensor& b, const Tensor& out, double alpha, double beta) const {
    const bool f64 = a.dtype() == DType::f64;
    const float alpha32 = static_cast<float>(alpha), beta32 = static_cast<float>(beta);
    const void* alpha_pointer = f64 ? static_cast<const void*>(&alpha) : &alpha32;
    const void* beta_pointer = f64 ? static_cast<const void*>(&beta) : &beta32;
    check_cublas(
        cublasLtMatmul(ctx.blas, operation_, alpha_pointer, b.raw(), b_, a.raw(), a_, beta_pointer, out.raw(), out_,
                       out.raw(), out_, &algorithm_, ctx.blas_workspace, kBlasWorkspaceBytes, ctx.stream),
        "matmul: cublasLtMatmul");
  }

 private:
  template <class T>
  void set(cublasLtMatmulDescAttributes_t attribute, T value) {
    check_cublas(cublasLtMatmulDescSetAttribute(operation_, attribute, &value, sizeof(value)),
                 "matmul: cublasLtMatmulDescSetAttribute");
  }

  static cublasLtMatrixLayout_t layout(DType dtype, std::int64_t rows, std::int64_t columns, std::int64_t leading,
                                       std::int64_t batch, std::int64_t batch_stride) {
    cublasLtMatrixLayout_t made = nullptr;
    check_cublas(cublasLtMatrixLayoutCreate(&made, data_type(dtype), static_cast<std::uint64_t>(rows),
                                            static_cast<std::uint64_t>(columns), leading),
                 "matmul: cublasLtMatrixLayoutCreate");
    const auto count = static_cast<std::int32_t>(batch);
    cublasLtMatrixLayoutSetAttribute(made, CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT, &count, sizeof(count));
    cublasLtMatrixLayoutSetAttribute(made, CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET, &batch_stride,
                                     sizeof(batch_stride));
    return made;
  }

  void choose(const Problem& p, const Context& ctx) {
    cublasLtMatmulPreference_t preference = nullptr;
    check_cublas(cublasLtMatmulPreferenceCreate(&preference), "matmul: cublasLtMatmulPreferenceCreate");
    const std::size_t workspace = kBlasWorkspaceBytes;
    cublasLtMatmulPreferenceSetAttribute(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &workspace,
                                         sizeof(workspace));
    for (const auto attribute :
         {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
          CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES})
      cublasLtMatmulPreferenceSetAttribute(preference, attribute, &p.alignment, sizeof(p.alignment));
    cublasLtMatmulHeuristicResult_t result{};
    int found = 0;
    const cublasStatus_t status =
        cublasLtMatmulAlgoGetHeuristic(ctx.blas, operation_, b_, a_, out_, out_, preference, 1, &result, &found);
    cublasLtMatmulPreferenceDestroy(preference);
    check(status == CUBLAS_STATUS_SUCCESS && found > 0, "matmul: cuBLASLt has no kernel for [", p.m, ", ", p.k, "] x [",
          p.k, ", ", p.n, "] ", p.dtype, ", batch ", p.batch, ": ", cublasGetStatusString(status));
    algorithm_ = result.algo;
  }

  cublasLtMatmulDesc_t operation_ = nullptr;
  cublasLtMatrixLayout_t a_ = nullptr, b_ = nullptr, out_ = nullptr;
  cublasLtMatmulAlgo_t algorithm_{};
};

std::uint32_t common_alignment(std::initializer_list<const Tensor*> tensors) {
  std::uintptr_t bits = 16;
  for (const Tensor* t : tensors) {
    if (!t->defined()) continue;
    bits |= reinterpret_cast<std::uintptr_t>(t->raw());
  }
  return static_cast<std::uint32_t>(bits & (~bits + 1));  // the lowest set bit
}

void multiply_as_given(const Tensor& a, const Tensor& b, const Tensor& bias, ops::Activation activation,
                       const Tensor& out, double alpha, double beta) {
  const Context& ctx = context(out.device());
  const std::int64_t batch = out.size(0), m = out.size(1), n = out.size(2), k = a.size(2);
  const ProfileScope scope("gemm", 2.0 * static_cast<double>(batch * m * n) * static_cast<double>(k),
                           static_cast<double>(a.bytes() + b.bytes() + out.bytes()));
  const Problem problem{ctx.index,
                        a.dtype(),
                        out.dtype(),
                        m,
                        n,
                        k,
                        batch,
                        matrix_of(a),
                        matrix_of(b),
                        std::max(out.stride(1), n),
                        out.stride(0),
                        bias.defined(),
                        activation == ops::Activation::relu,
                        beta != 0,
                        common_alignment({&a, &b, &out, &bias})};
  static thread_local std::map<decltype(problem.key()), Plan> plans;
  auto found = plans.find(problem.key());
  if (found == plans.end()) found = plans.emplace(problem.key(), Plan(problem, ctx)).first;
  if (bias.defined()) found->second.set_bias(bias.raw());
  found->second.run(ctx, a, b, out, alpha, beta);
}

/// Whether rows (or columns, whichever are dense) begin on boundaries of 16 bytes and end on them.
bool is_even(const Tensor& x) {
  const Matrix matrix = matrix_of(x);
  const auto address = reinterpret_cast<std::uintptr_t>(x.raw());
  return x.size(matrix.transposed ? 1 : 2) % 8 == 0 && matrix.leading % 8 == 0 && address % 16 == 0;
}

/// x [1, rows, columns] in the corner of a matrix of zeros whose sizes are multiples of eight.
Tensor evened(const Tensor& x) {
  if (matrix_of(x).transposed) return evened(x.transpose(1, 2)).transpose(1, 2);
  if (is_even(x) && x.size(1) % 8 == 0) return x;
  const auto rounded = [](std::int64_t size) { return (size + 7) / 8 * 8; };
  const Tensor larger = Tensor::zeros({1, rounded(x.size(1)), rounded(x.size(2))}, x.dtype(), x.device());
  copy(x, larger.slice(1, 0, x.size(1)).slice(2, 0, x.size(2)));
  return larger;
}

/// cuBLAS multiplies bf16 matrices of odd sizes at about a quarter of the tensor cores' rate: whether it costs less to
/// copy them into matrices of even sizes first.
bool copies_pay(const Tensor& a, const Tensor& b, const Tensor& out, bool accumulates) {
  if (a.dtype() != DType::bf16 || out.size(0) != 1) return false;
  double moved = 0;  // bytes
  for (const Tensor* x : {&a, &b})
    if (!is_even(*x)) moved += 3 * static_cast<double>(x->bytes());
  if (!is_even(out)) moved += (accumulates ? 5 : 2) * static_cast<double>(out.bytes());
  if (moved == 0) return false;
  // An H200's figures: 150 instead of 500 TFLOP/s or more; copies at 2 TB/s, and 8 us for the launches.
  const double flops = 2.0 * static_cast<double>(out.size(1)) * static_cast<double>(out.size(2) * a.size(2));
  return flops * (1 / 150e12 - 1 / 500e12) > moved / 2e12 + 8e-6;
}

void multiply(const Tensor& a, const Tensor& b, const Tensor& bias, ops::Activation activation, const Tensor& out,
              double alpha, double beta) {
  if (!copies_pay(a, b, out, beta != 0)) return multiply_as_given(a, b, bias, activation, out, alpha, beta);
  const Tensor left = evened(a), right = evened(b);
  const bool same_size = left.size(1) == a.size(1) && right.size(2) == b.size(2);
  if (same_size && is_even(out)) return multiply_as_given(left, right, bias, activation, out, alpha, beta);
  const Shape shape = {1, left.size(1), right.size(2)};
  const Tensor whole = (beta != 0 ? Tensor::zeros : Tensor::empty)(shape, out.dtype(), out.device());
  const Tensor corner = whole.slice(1, 0, out.size(1)).slice(2, 0, out.size(2));
  if (beta != 0) copy(out, corner);
  Tensor wide_bias = bias;
  if (bias.defined() && bias.size(0) != right.size(2)) {
    wide_bias = Tensor::zeros({right.size(2)}, bias.dtype(), bias.device());
    copy(bias, wide_bias.slice(0, 0, bias.size(0)));
  }
  multiply_as_given(left, right, wide_bias, activation, whole, alpha, beta);
  copy(corner, out);
}

}  // namespace

void matmul(const Tensor& a, const Tensor& b, const Tensor& out, double alpha, double beta) {
  if (out.numel() == 0) return;
  if (a.size(2) == 0) {
    if (beta == 0) fill(out, 0);
    else affine(out, beta, 0, out);
    return;
  }
  multiply(a, b, Tensor{}, ops::Activation::identity, out, alpha, beta);
}

void linear(const Tensor& x, const Tensor& w, const Tensor& bias, ops::Activation activation, const Tensor& out) {
  if (out.numel() == 0) return;
  if (x.size(1) == 0) {
    if (bias.defined()) copy(bias.broadcast_to(out.shape()), out);
    else fill(out, 0);
    if (activation != ops::Activation::identity) unary(activation, out, out);
    return;
  }
  if (has_one_row(x, w)) return linear_one_row(x, w, bias, activation, out);
  // cuBLASLt adds a bias in 16- and 32-bit products only, and of the result's dtype; a ReLU follows in 16 bits.
  const bool same = out.dtype() == x.dtype();
  const bool fused_bias = bias.defined() && same && x.dtype() != DType::f64;
  const bool separate_bias = bias.defined() && !fused_bias;
  const bool fused_relu = activation == ops::Activation::relu && same && x.dtype() == DType::bf16;
  if (separate_bias) copy(bias.broadcast_to(out.shape()), out);
  multiply(x.unsqueeze(0), w.transpose(0, 1).unsqueeze(0), fused_bias ? bias : Tensor{},
           fused_relu ? activation : ops::Activation::identity, out.unsqueeze(0), 1, separate_bias ? 1 : 0);
  if (activation != ops::Activation::identity && !fused_relu) unary(activation, out, out);
}

}  // namespace switchyard::cuda
