// Chapter 4: attention, for every head and every query i of it
//     s_ij = scale * q_i . k_j       p_ij = exp(s_ij - lse_i)       out_i = sum over j of p_ij v_j
// where lse_i = log(sum over j of exp(s_ij)). If causal, query i sees the keys 0 ... i, else all T. q, k, v, out and the
// gradients are (heads, T, HEAD), lse and delta (heads, T).
#include "../given/todo.cuh"

constexpr int HEAD = 32;  // numbers in a query: as many as a warp has lanes
constexpr int TILE = 32;  // keys (in 4.3: queries) that a block has in shared memory at a time
constexpr int WARPS = 8;  // a block, in 4.2 and 4.3: it has so many queries (in 4.3: keys)

// 4.1  The plain way: a thread for every query, blockIdx.y is the head. First the largest score, then the sums: no
// exponential may be of more than 0.
__global__ void attention_naive_kernel(const float* q, const float* k, const float* v, float* out, float* lse, int T,
                                       bool causal, float scale) {
  // BEGIN SOLUTION 4.1
  int i = blockIdx.x * blockDim.x + threadIdx.x, head = blockIdx.y * T;  // head: its first row
  if (i >= T) return;
  int keys = causal ? i + 1 : T;
  auto score = [&](int j) {
    float s = 0;
    for (int d = 0; d < HEAD; d++) s += q[(head + i) * HEAD + d] * k[(head + j) * HEAD + d];
    return s * scale;
  };
  float m = -INFINITY, l = 0, o[HEAD] = {};
  for (int j = 0; j < keys; j++) m = fmaxf(m, score(j));
  for (int j = 0; j < keys; j++) {
    float p = expf(score(j) - m);
    l += p;
    for (int d = 0; d < HEAD; d++) o[d] += p * v[(head + j) * HEAD + d];
  }
  for (int d = 0; d < HEAD; d++) out[(head + i) * HEAD + d] = o[d] / l;
  lse[head + i] = m + logf(l);
  // END SOLUTION
}

extern "C" void attention_naive(const float* q, const float* k, const float* v, float* out, float* lse, int heads,
                                int T, bool causal, float scale) {
  attention_naive_kernel<<<dim3((T + 31) / 32, heads), 32>>>(q, k, v, out, lse, T, causal, scale);
}

// BEGIN SOLUTION 4.2 NO PROMPT
__device__ float warp_sum(float v) {
  for (int distance = 16; distance > 0; distance /= 2) v += __shfl_xor_sync(0xffffffff, v, distance);
  return v;
}

__device__ float warp_max(float v) {
  for (int distance = 16; distance > 0; distance /= 2) v = fmaxf(v, __shfl_xor_sync(0xffffffff, v, distance));
  return v;
}
// END SOLUTION

// 4.2  FlashAttention's idea. A block has WARPS queries of a head, a warp for each, and goes through the keys in tiles
// of 32, which all its warps share. In a warp lane j computes the score of the tile's key j, then lane d the output's
// number d. No pass for the maximum: where it grows, what was summed up so far is scaled down (online softmax).
// The scores never reach global memory, and no two lanes want different words of one bank. threadIdx.x is the lane.
__global__ void attention_tiled_kernel(const float* q, const float* k, const float* v, float* out, float* lse, int T,
                                       bool causal, float scale) {
  // BEGIN SOLUTION 4.2
  __shared__ float k_tile[TILE][HEAD + 1], v_tile[TILE][HEAD], q_row[WARPS][HEAD];
  int lane = threadIdx.x, warp = threadIdx.y, head = blockIdx.y * T;
  int first = blockIdx.x * WARPS, i = first + warp;
  int end = causal ? min(T, first + WARPS) : T;  // of the keys that this block needs
  if (i < T) q_row[warp][lane] = q[(head + i) * HEAD + lane];
  float m = -INFINITY, l = 0, o = 0;
  for (int j0 = 0; j0 < end; j0 += TILE) {
    for (int j = warp; j < TILE; j += WARPS) {
      int at = (head + j0 + j) * HEAD + lane;
      k_tile[j][lane] = j0 + j < T ? k[at] : 0;
      v_tile[j][lane] = j0 + j < T ? v[at] : 0;
    }
    __syncthreads();  // the tile is there
    int j = j0 + lane;
    float s = 0;
    for (int d = 0; d < HEAD && i < T; d++) s += q_row[warp][d] * k_tile[lane][d];
    s = j < T && (!causal || j <= i) ? s * scale : -INFINITY;
    float larger = fmaxf(m, warp_max(s)), correction = expf(m - larger), p = expf(s - larger);
    l = l * correction + warp_sum(p);
    o *= correction;
    for (int n = 0; n < TILE; n++) o += __shfl_sync(0xffffffff, p, n) * v_tile[n][lane];
    m = larger;
    __syncthreads();  // nobody needs the tile any more
  }
  if (i >= T) return;
  out[(head + i) * HEAD + lane] = o / l;
  if (lane == 0) lse[head + i] = m + logf(l);
  // END SOLUTION
}

extern "C" void attention_tiled(const float* q, const float* k, const float* v, float* out, float* lse, int heads,
                                int T, bool causal, float scale) {
  attention_tiled_kernel<<<dim3((T + WARPS - 1) / WARPS, heads), dim3(32, WARPS)>>>(q, k, v, out, lse, T, causal,
                                                                                    scale);
}

// 4.3  The gradients of keys and values, from dout, lse and delta_i = dout_i . out_i. With dp_ij = dout_i . v_j and
// ds_ij = p_ij (dp_ij - delta_i):
//     dv_j = sum over i of p_ij dout_i       dk_j = scale * sum over i of ds_ij q_i
// 4.2 turned around: a warp for every key, the queries in tiles. So no two warps add to the same number.
__global__ void attention_backward_keys_kernel(const float* dout, const float* q, const float* k, const float* v,
                                               const float* lse, const float* delta, float* dk, float* dv, int T,
                                               bool causal, float scale) {
  // BEGIN SOLUTION 4.3
  __shared__ float q_tile[TILE][HEAD + 1], dout_tile[TILE][HEAD + 1], k_row[WARPS][HEAD], v_row[WARPS][HEAD];
  int lane = threadIdx.x, warp = threadIdx.y, head = blockIdx.y * T;
  int first = blockIdx.x * WARPS, j = first + warp;
  if (j < T) {
    k_row[warp][lane] = k[(head + j) * HEAD + lane];
    v_row[warp][lane] = v[(head + j) * HEAD + lane];
  }
  float sum_dk = 0, sum_dv = 0;
  for (int i0 = causal ? first : 0; i0 < T; i0 += TILE) {  // queries before `first` see none of these keys
    for (int n = warp; n < TILE; n += WARPS) {
      int at = (head + i0 + n) * HEAD + lane;
      q_tile[n][lane] = i0 + n < T ? q[at] : 0;
      dout_tile[n][lane] = i0 + n < T ? dout[at] : 0;
    }
    __syncthreads();  // the tile is there
    int i = i0 + lane;
    bool seen = i < T && j < T && (!causal || j <= i);
    float s = 0, dp = 0, p = 0, ds = 0;
    if (seen) {
      for (int d = 0; d < HEAD; d++) {
        s += k_row[warp][d] * q_tile[lane][d];
        dp += v_row[warp][d] * dout_tile[lane][d];
      }
      p = expf(s * scale - lse[head + i]);
      ds = p * (dp - delta[head + i]);
    }
    for (int n = 0; n < TILE; n++) {
      sum_dv += __shfl_sync(0xffffffff, p, n) * dout_tile[n][lane];
      sum_dk += __shfl_sync(0xffffffff, ds, n) * q_tile[n][lane];
    }
    __syncthreads();  // nobody needs the tile any more
  }
  if (j >= T) return;
  dk[(head + j) * HEAD + lane] = scale * sum_dk;
  dv[(head + j) * HEAD + lane] = sum_dv;
  // END SOLUTION
}

extern "C" void attention_backward_keys(const float* dout, const float* q, const float* k, const float* v,
                                        const float* lse, const float* delta, float* dk, float* dv, int heads, int T,
                                        bool causal, float scale) {
  attention_backward_keys_kernel<<<dim3((T + WARPS - 1) / WARPS, heads), dim3(32, WARPS)>>>(dout, q, k, v, lse, delta,
                                                                                            dk, dv, T, causal, scale);
}
