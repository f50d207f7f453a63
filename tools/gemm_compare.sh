#!/usr/bin/env bash
# Compares the matrix-product rates of OpenBLAS, BLIS and oneDNN on this machine: GFLOP/s in fp32 on random data, the best
# of RUNS runs' medians. A library that is not installed is left out. The findings stand in docs/cpu-gemm.md.
#
#   tools/gemm_compare.sh [RUNS]        on Debian: libopenblas-openmp-dev libblis-openmp-dev libdnnl-dev
#   OMP_NUM_THREADS sets the threads.
set -euo pipefail
runs=${1:-3}
unset OPENBLAS_CORETYPE # would override the kernels that OpenBLAS picks for this processor
export OMP_WAIT_POLICY=active OMP_NUM_THREADS=${OMP_NUM_THREADS:-$(nproc)} # BLIS takes one thread unless told
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

cat >"$folder/gemm.cpp" <<'CPP'
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <random>
#include <vector>
#ifdef USE_ONEDNN
#include <dnnl.h>
#else
#include <cblas.h>
#endif

// Row-major C[m,n] = op(A) op(B); layout letters say which of the two is stored transposed.
void gemm(bool ta, bool tb, int m, int n, int k, const float* a, const float* b, float* c) {
  const int lda = ta ? m : k, ldb = tb ? k : n;
#ifdef USE_ONEDNN
  dnnl_sgemm(ta ? 'T' : 'N', tb ? 'T' : 'N', m, n, k, 1, a, lda, b, ldb, 0, c, n);
#else
  cblas_sgemm(CblasRowMajor, ta ? CblasTrans : CblasNoTrans, tb ? CblasTrans : CblasNoTrans, m, n, k, 1, a, lda, b, ldb, 0,
              c, n);
#endif
}

int main() {
  const int shapes[][3] = {{1024, 1024, 1024}, {4096, 512, 128}, {4096, 128, 512}, {1024, 128, 512}, {1024, 512, 128},
                           {2048, 256, 256},   {8192, 256, 768}, {512, 256, 1024}, {256, 256, 32},   {64, 64, 64}};
  std::mt19937 random(1);
  std::normal_distribution<float> normal;
  for (const auto& [m, n, k] : shapes) {
    std::vector<float> a(std::size_t(m) * k), b(std::size_t(n) * k), c(std::size_t(m) * n);
    for (float& x : a) x = normal(random);
    for (float& x : b) x = normal(random);
    const double flop = 2.0 * m * n * k;
    for (const char* layout : {"NN", "NT", "TN"}) {
      std::vector<double> seconds;
      const int repeats = std::clamp(static_cast<int>(2e9 / flop), 15, 300);
      for (int i = 0; i < repeats + 3; ++i) {
        const auto start = std::chrono::steady_clock::now();
        gemm(layout[0] == 'T', layout[1] == 'T', m, n, k, a.data(), b.data(), c.data());
        const std::chrono::duration<double> taken = std::chrono::steady_clock::now() - start;
        if (i >= 3) seconds.push_back(taken.count());
      }
      std::nth_element(seconds.begin(), seconds.begin() + repeats / 2, seconds.end());
      std::printf("%dx%dx%d-%s %.1f\n", m, n, k, layout, flop / seconds[repeats / 2] * 1e-9);
    }
  }
}
CPP

arch=$(gcc -print-multiarch)
names=()
build() { # name, then the compiler's arguments
  local name=$1
  shift
  if g++ -std=c++20 -O3 -march=native -fopenmp "$folder/gemm.cpp" -o "$folder/$name" "$@" 2>"$folder/$name.log"; then
    names+=("$name")
  else
    echo "$name is left out: $(tail -n 1 "$folder/$name.log")" >&2
  fi
}
build OpenBLAS -I/usr/include/"$arch"/openblas-openmp -L/usr/lib/"$arch"/openblas-openmp \
  -Wl,-rpath,/usr/lib/"$arch"/openblas-openmp -lopenblas
build BLIS -I/usr/include/"$arch"/blis-openmp -L/usr/lib/"$arch"/blis-openmp \
  -Wl,-rpath,/usr/lib/"$arch"/blis-openmp -lblis
# BLIS 0.9 falls back on its plain C kernels on a processor newer than itself; 0 asks for its AVX-512 ones (skx).
if [[ " ${names[*]} " == *" BLIS "* ]] && grep -qw avx512f /proc/cpuinfo; then
  printf '#!/bin/sh\nBLIS_ARCH_TYPE=0 exec "%s"\n' "$folder/BLIS" >"$folder/BLIS-skx"
  chmod +x "$folder/BLIS-skx"
  names+=(BLIS-skx)
fi
build oneDNN -DUSE_ONEDNN -ldnnl

# One library after the other, and the round repeated, so that a disturbance does not fall on one library only.
for ((run = 0; run < runs; ++run)); do
  for name in "${names[@]}"; do
    "$folder/$name" | sed "s/^/$name /" >>"$folder/figures"
  done
done
awk -v names="${names[*]}" '
  { key = $1 " " $2; if ($3 > best[key]) best[key] = $3; if (!seen[$2]++) order[++rows] = $2 }
  END {
    columns = split(names, name, " ")
    printf "| C[m,n] += A[m,k] B[k,n] |"; for (i = 1; i <= columns; ++i) printf " %s |", name[i]
    printf "\n|---|"; for (i = 1; i <= columns; ++i) printf "---|"; print ""
    for (row = 1; row <= rows; ++row) {
      shape = order[row]; sub(/-/, ", ", shape); gsub(/x/, " x ", shape); printf "| %s |", shape
      for (i = 1; i <= columns; ++i) { rate = best[name[i] " " order[row]]; printf " %.0f |", rate; total[i] += log(rate) }
      print ""
    }
    printf "| geometric mean |"; for (i = 1; i <= columns; ++i) printf " %.0f |", exp(total[i] / rows); print ""
  }' "$folder/figures"
