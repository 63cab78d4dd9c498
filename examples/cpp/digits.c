/* The same in C: samples two digits and draws them in the terminal: digits_c BUNDLE */
#include <starflow/starflow.h>
#include <stdio.h>
#include <stdlib.h>

static void check(starflow_status status) {
  if (status != STARFLOW_OK) {
    fprintf(stderr, "%s\n", starflow_last_error());
    exit(1);
  }
}

int main(int count, char **values) {
  const int64_t labels[] = {3, 7};
  const starflow_guidance guidance = {.weight = 2.0};
  starflow_request request = {.struct_size = sizeof(starflow_request)};
  starflow_sizes sizes = {.struct_size = sizeof(starflow_sizes)};
  starflow_sampler *sampler = NULL;
  float *noise, *data;
  uint8_t *pixels;
  size_t row, column;

  if (count != 2) {
    fputs("usage: digits_c BUNDLE\n", stderr);
    return 2;
  }
  check(starflow_open(values[1], NULL, &sampler));
  check(starflow_get_sizes(sampler, &sizes));
  noise = malloc(2 * sizes.noise_values * sizeof(float));
  data = malloc(2 * sizes.data_values * sizeof(float));
  pixels = malloc(2 * sizes.height * sizes.width * sizes.channels);
  request.labels = labels;
  request.label_count = 2;
  request.guidance = &guidance;
  request.guidance_count = 1;
  check(starflow_noise(sampler, 2, 7, 1.0F, noise));
  check(starflow_generate(sampler, 2, noise, &request, data));
  check(starflow_to_images(sampler, 2, data, STARFLOW_DENOISE_AUTO, pixels));
  for (row = 0; row < 2 * sizes.height; ++row) {
    for (column = 0; column < sizes.width; ++column) {
      fputs(pixels[(row * sizes.width + column) * sizes.channels] < 128 ? "  " : "##", stdout);
    }
    puts("");
  }
  free(noise);
  free(data);
  free(pixels);
  starflow_close(sampler);
  return 0;
}
