// What only Hopper (H100, H200) has. Its tensor cores are fed by instructions that go on by themselves: wgmma
// multiplies for four warps at once, 64 rows, and reads its right factor straight from shared memory; TMA, the copy
// engine, brings whole tiles there, swizzled, at one instruction of one thread. So the work is divided by kind, not only
// by rows:
//
//   producer    warpgroup 0   one thread asks for the tiles of K and V; it needs few registers, and gives them away
//   consumers   warpgroup 1   64 queries: S = Q K^T, softmax, O += P V
//               warpgroup 2   64 more
//
// They meet at barriers that also count bytes (mbarrier). The tiles go round through STAGES places:
//
//                   K here?                    V here?
//   producer   wait free | ask K, V |  wait free | ask K, V | ...            free:  8 warps have read K and V
//   consumer        wait K | S, P | wait V | O | say free | wait K | ...     here:  all bytes have arrived
//
// While one of the consumers is at its softmax, the tensor cores may have the other's products; nothing here arranges
// that they do. Q and P are left factors in registers, laid out as mma has them (fragments.cuh); K and V are never read
// by an ordinary instruction at all.
//
// A tile of K or V is 128 rows in shared memory, split into blocks of 64 columns, whose rows are 128 bytes: what TMA
// swizzles and wgmma expects (chunk c of row r at place c ^ (r % 8), as in swizzle.cuh):
//
//              columns 0 .. 63       64 .. 127           S: a product takes 64 rows of 16 columns
//     key 0  | 128 bytes      |    | 128 bytes      |    O: a product takes 16 rows of 64 columns
//       ...  | 16 KB          |    | 16 KB          |
//     key 127|                |    |                |
//
// takes: bfloat16, float16; D in multiples of 8, up to 128; on request; needs sm_90a
// moved: 2 Tq Tk D / 128 numbers of 2 bytes a head (causal: half); 4 Tq Tk D FLOPs
// a block: 64 KB of shared memory for D up to 64, else 128 KB; 168 registers a thread, moved to 24 and 240; no spills
// counted: nothing, the emulator does not run it
// measured: not yet run on a GPU
#include "../ptx_hopper.cuh"
#include "fragments.cuh"

constexpr int GROUP = 128, CONSUMERS = 2, THREADS = GROUP * (1 + CONSUMERS);  // GROUP: threads a warpgroup
constexpr int BQ = 64 * CONSUMERS, BK = 128, STAGES = 2, BLOCK = 64;          // BLOCK: columns of a swizzled block

template <class T, int D_MAX>
struct Shared {
  static constexpr int BLOCKS = D_MAX / BLOCK;
  T k[STAGES][BLOCKS][BK][BLOCK], v[STAGES][BLOCKS][BK][BLOCK];
  uint64_t k_here[STAGES], v_here[STAGES], free[STAGES];
};

template <class T, int D_MAX>
__device__ void produce(Shared<T, D_MAX>& shared, const CUtensorMap* k_map, const CUtensorMap* v_map, int tiles, int h,
                        int b) {
  for (int n = 0; n < tiles; n++) {
    const int stage = n % STAGES, round = n / STAGES;
    mbarrier_wait(&shared.free[stage], round % 2 ^ 1);  // the first round finds all places free
    mbarrier_arrive_expect(&shared.k_here[stage], sizeof(shared.k[stage]));
    for (int c = 0; c < D_MAX / BLOCK; c++) {
      tma_load(shared.k[stage][c], k_map, &shared.k_here[stage], BLOCK * c, BK * n, h, b);
    }
    mbarrier_arrive_expect(&shared.v_here[stage], sizeof(shared.v[stage]));
    for (int c = 0; c < D_MAX / BLOCK; c++) {
      tma_load(shared.v[stage][c], v_map, &shared.v_here[stage], BLOCK * c, BK * n, h, b);
    }
  }
}

// A warp of a consumer: the 16 queries from i0 on.
template <class T, int D_MAX>
__device__ void consume(Shared<T, D_MAX>& shared, const AttentionForward<T>& a, int tiles, int b, int h, int i0) {
  const AttentionShape& shape = a.shape;
  const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4, D = shape.D;
  const int more = shape.causal, see = shape.causal ? i0 + g + 1 + shape.Tk - shape.Tq : shape.Tk;  // keys row g sees
  const float scale2 = positive_scale2(shape.scale);

  uint32_t q[D_MAX / 16][4];
#pragma unroll
  for (int n = 0; n < D_MAX / 16; n++) {
#pragma unroll
    for (int p = 0; p < 4; p++) {
      const int i = i0 + g + p % 2 * 8, d = 16 * n + 2 * t + p / 2 * 8;
      q[n][p] = i < shape.Tq && d < D ? *reinterpret_cast<const uint32_t*>(a.q.row(b, h, i) + d) : 0;
    }
  }
  float o[D_MAX / 8][4] = {};
  Running now;

  for (int n = 0; n < tiles; n++) {
    const int stage = n % STAGES, parity = n / STAGES % 2;
    float s[BK / 8][4] = {};
    mbarrier_wait(&shared.k_here[stage], parity);
    keep(s);
    wgmma_fence();
#pragma unroll
    for (int d = 0; d < D_MAX; d += 16) {  // S = Q K^T
#pragma unroll
      for (int j = 0; j < BK; j += 64) {
        const uint64_t k = wgmma_tile(&shared.k[stage][d / BLOCK][j][d % BLOCK]);
        wgmma_m64n64k16<T, true>(&s[j / 8], q[d / 16], k, d > 0);
      }
    }
    wgmma_commit();
    wgmma_wait();
    keep(s);

    make_scale_positive(s, shape.scale);
    const int visible[2] = {see - BK * n, see - BK * n + 8 * more};
    if (__any_sync(0xffffffff, visible[0] < BK)) hide(s, visible);
    online_softmax(s, now, o, scale2);
    uint32_t p[BK / 16][4];
#pragma unroll
    for (int j = 0; j < BK; j += 16) left_factor<T>(p[j / 16], s, j / 16);

    mbarrier_wait(&shared.v_here[stage], parity);
    keep(p);
    keep(o);
    wgmma_fence();
#pragma unroll
    for (int j = 0; j < BK; j += 16) {  // O += P V
#pragma unroll
      for (int d = 0; d < D_MAX; d += 64) {
        wgmma_m64n64k16<T, false>(&o[d / 8], p[j / 16], wgmma_tile(&shared.v[stage][d / BLOCK][j][0]), true);
      }
    }
    wgmma_commit();
    wgmma_wait();
    keep(p);
    keep(o);
    if (lane == 0) mbarrier_arrive(&shared.free[stage]);
  }
  store_rows(a, b, h, i0, o, now, scale2, true);
}

template <class T, int D_MAX>
__global__ __launch_bounds__(THREADS, 1) void attend(AttentionForward<T> a, const __grid_constant__ CUtensorMap k_map,
                                                     const __grid_constant__ CUtensorMap v_map) {
  extern __shared__ __align__(1024) unsigned char bytes[];
  Shared<T, D_MAX>& shared = *reinterpret_cast<Shared<T, D_MAX>*>(bytes);
  if (threadIdx.x == 0) {
    for (int stage = 0; stage < STAGES; stage++) {
      mbarrier_init(&shared.k_here[stage], 1);
      mbarrier_init(&shared.v_here[stage], 1);
      mbarrier_init(&shared.free[stage], 4 * CONSUMERS);  // a lane of every warp
    }
    mbarrier_init_done();
  }
  __syncthreads();  // the barriers are there for all

  const AttentionShape& shape = a.shape;
  const int heads = shape.B * shape.H, head = blockIdx.x % heads, b = head / shape.H, h = head % shape.H;
  const int i0 = (gridDim.x / heads - 1 - blockIdx.x / heads) * BQ;  // the last queries first
  const int keys = shape.visible_keys(i0 + BQ < shape.Tq ? i0 + BQ - 1 : shape.Tq - 1), tiles = (keys + BK - 1) / BK;
  if (threadIdx.x < GROUP) {
    shrink_registers<24>();
    if (threadIdx.x == 0) produce(shared, &k_map, &v_map, tiles, h / shape.group(), b);
  } else {
    grow_registers<240>();
    consume(shared, a, tiles, b, h, i0 + 16 * (int(threadIdx.x - GROUP) / 32));
  }
}

// What TMA has to know of K or V: four dimensions, innermost first, their distances in bytes, and the box to fetch.
// False if the driver does not want it: the address and every distance by itself must be a multiple of 16 bytes (but no
// distance of another: the heads of a packed projection lie inside its rows), and no distance 0, as those of broadcast
// heads are (cuda_call.py copies such); a dimension of one number has no distance, so any will do.
template <class T>
static bool make_map(CUtensorMap* map, CUtensorMapDataType type, const Heads<const T>& x, const AttentionShape& shape) {
  static void* const encode = [] {  // a function of the driver, found at run time so that nothing is linked to libcuda
    void* function = nullptr;
    cudaDriverEntryPointQueryResult found;
#if CUDART_VERSION >= 12050
    cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000, cudaEnableDefault, &found);
#else
    cudaGetDriverEntryPoint("cuTensorMapEncodeTiled", &function, cudaEnableDefault, &found);
#endif
    return function;
  }();
  if (!encode) return false;
  const cuuint64_t sizes[] = {cuuint64_t(shape.D), cuuint64_t(shape.Tk), cuuint64_t(shape.Hkv), cuuint64_t(shape.B)};
  cuuint64_t distances[] = {cuuint64_t(x.row_stride), cuuint64_t(x.head_stride), cuuint64_t(x.batch_stride)};
  for (int n = 0; n < 3; n++) distances[n] = sizes[n + 1] == 1 ? 16 : sizeof(T) * distances[n];  // of one: never used
  const cuuint32_t box[] = {BLOCK, BK, 1, 1}, steps[] = {1, 1, 1, 1};
  return reinterpret_cast<decltype(&cuTensorMapEncodeTiled)>(encode)(
             map, type, 4, const_cast<T*>(x.data), sizes, distances, box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE,
             CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
             CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE) == CUDA_SUCCESS;
}

template <class T, int D_MAX>
static void launch(const AttentionForward<T>& a, CUtensorMapDataType type, cudaStream_t stream) {
  const AttentionShape& shape = a.shape;
  CUtensorMap k_map = {}, v_map = {};
  const bool made = make_map(&k_map, type, a.k, shape) && make_map(&v_map, type, a.v, shape);
  const int64_t blocks = made ? (shape.Tq + BQ - 1) / BQ * shape.B * shape.H : 0;  // of no blocks: leaves an error
  auto kernel = attend<T, D_MAX>;
  cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, sizeof(Shared<T, D_MAX>));
  kernel<<<blocks, THREADS, sizeof(Shared<T, D_MAX>), stream>>>(a, k_map, v_map);
}

extern "C" void attention_forward_hopper(int64_t dtype, const void* q, int64_t q_batch, int64_t q_head, int64_t q_row,
                                         const void* k, int64_t k_batch, int64_t k_head, int64_t k_row, const void* v,
                                         int64_t v_batch, int64_t v_head, int64_t v_row, void* out, int64_t out_batch,
                                         int64_t out_head, int64_t out_row, float* lse, int64_t B, int64_t H,
                                         int64_t Hkv, int64_t Tq, int64_t Tk, int64_t D, int64_t causal, float scale,
                                         cudaStream_t stream) {
  const auto type = dtype == BFLOAT16 ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16 : CU_TENSOR_MAP_DATA_TYPE_FLOAT16;
  const AttentionForward<void> given = {{q, q_batch, q_head, q_row},
                                        {k, k_batch, k_head, k_row},
                                        {v, v_batch, v_head, v_row},
                                        {out, out_batch, out_head, out_row},
                                        lse,
                                        {B, H, Hkv, Tq, Tk, D, causal != 0, scale}};
  by_16_bit_dtype(dtype, [&](auto number) {
    using T = decltype(number);
    D <= 64 ? launch<T, 64>(typed<T>(given), type, stream) : launch<T, 128>(typed<T>(given), type, stream);
  });
}
