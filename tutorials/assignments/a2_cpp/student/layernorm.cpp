// Tasks 1.1 and 1.2: layernorm (Ba, Kiros, Hinton 2016, arXiv:1607.06450). Every row is a token's C channels.
#include "../given/functions.h"

// y = (x - mean) * rstd * weight + bias, with rstd = 1 / sqrt(variance + eps), row by row.
//
// x, y (rows, C), weight, bias (C), mean, rstd (rows). The variance is the mean of (x - mean)^2.
// HINT: add up in a double. A float has 24 bits: the sum of many numbers loses those that the next number needs.
void layernorm_forward(const float* x, const float* weight, const float* bias, int64_t rows, int64_t C, float eps,
                       float* y, float* mean, float* rstd) {
  // BEGIN SOLUTION 1.1
  for (int64_t r = 0; r < rows; r++) {
    const float* x_row = x + r * C;
    double sum = 0;
    for (int64_t i = 0; i < C; i++) sum += x_row[i];
    double center = sum / C;

    double squares = 0;
    for (int64_t i = 0; i < C; i++) squares += (x_row[i] - center) * (x_row[i] - center);
    double scale = 1 / std::sqrt(squares / C + eps);

    for (int64_t i = 0; i < C; i++) y[r * C + i] = (x_row[i] - center) * scale * weight[i] + bias[i];
    mean[r] = center;
    rstd[r] = scale;
  }
  // END SOLUTION
}

// dy, x, dx (rows, C), weight, dweight, dbias (C), mean, rstd (rows), as the forward pass returned them.
//
// With xhat = (x - mean) * rstd, the output was y = xhat * weight + bias. A change of one x moves mean and rstd too, and
// through them every element of the row's y. weight and bias meet every row: their gradients are sums over all rows.
void layernorm_backward(const float* dy, const float* x, const float* weight, const float* mean, const float* rstd,
                        int64_t rows, int64_t C, float* dx, float* dweight, float* dbias) {
  // BEGIN SOLUTION 1.2
  std::vector<double> dweight_sum(C), dbias_sum(C);
  for (int64_t r = 0; r < rows; r++) {
    const float *dy_row = dy + r * C, *x_row = x + r * C;
    double sum_dxhat = 0, sum_dxhat_xhat = 0;
    for (int64_t i = 0; i < C; i++) {
      double xhat = (double(x_row[i]) - mean[r]) * rstd[r], dxhat = double(dy_row[i]) * weight[i];
      sum_dxhat += dxhat;
      sum_dxhat_xhat += dxhat * xhat;
      dweight_sum[i] += dy_row[i] * xhat;
      dbias_sum[i] += dy_row[i];
    }
    for (int64_t i = 0; i < C; i++) {
      double xhat = (double(x_row[i]) - mean[r]) * rstd[r], dxhat = double(dy_row[i]) * weight[i];
      dx[r * C + i] = rstd[r] * (dxhat - sum_dxhat / C - xhat * (sum_dxhat_xhat / C));
    }
  }
  std::copy(dweight_sum.begin(), dweight_sum.end(), dweight);
  std::copy(dbias_sum.begin(), dbias_sum.end(), dbias);
  // END SOLUTION
}
