/* The C interface from C11: c_client FOLDER_OF_FAKES */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "detr.h"

static int failures = 0;
#define CHECK(condition)                                                                                        \
    do {                                                                                                        \
        if (!(condition)) {                                                                                     \
            ++failures;                                                                                         \
            fprintf(stderr, "%s:%d: %s (last error: %s)\n", __FILE__, __LINE__, #condition, detr_last_error()); \
        }                                                                                                       \
    } while (0)

int main(int argc, char** argv) {
    if (argc != 2) return 2;
    char path[4096];
    uint8_t pixels[2][4 * 8]; /* two images of 2 x 2 pixels, with two bytes of padding after each row of six */
    memset(pixels, 200, sizeof pixels);
    for (int image = 0; image < 2; ++image)
        for (int row = 0; row < 2; ++row)
            for (int byte = 0; byte < 6; ++byte) pixels[image][8 * row + byte] = (uint8_t)(10 * image + 6 * row + byte);
    detr_image images[2] = {{pixels[0], 2, 2, 3, DETR_RGB, 8}, {pixels[1], 2, 2, 3, DETR_RGB, 8}};
    detr_model* model = NULL;
    detr_results* results = NULL;
    size_t count = 99;

    /* Two images */
    CHECK(strlen(detr_last_error()) == 0);
    snprintf(path, sizeof path, "%s/panoptic.onnx", argv[1]);
    CHECK(detr_open(path, 1, 0, &model) == DETR_OK);
    CHECK(detr_detect(model, images, 2, 0.5F, &results) == DETR_OK);
    for (size_t image = 0; image < 2; ++image) {
        const detr_detection* found = detr_results_get(results, image, &count);
        const float sum = (float)(66 + 120 * image);
        CHECK(count == 2);
        CHECK(found[0].label == 1 && strcmp(found[0].name, "traffic light") == 0 && fabsf(found[0].score - 0.9F) < 1e-6F);
        CHECK(found[1].label == 0 && strcmp(found[1].name, "cat") == 0 && fabsf(found[1].score - 0.6F) < 1e-6F);
        CHECK(found[0].x_min == sum && found[1].x_min == sum + 1 && found[0].y_min == (float)(10 * image));
        CHECK(found[0].x_max == 2 && found[0].y_max == 2);
        CHECK(found[1].mask_height == 2 && found[1].mask_width == 3 && found[1].mask[1] == 1.5F && found[1].mask[5] == 1);
    }
    CHECK(detr_results_get(results, 2, &count) == NULL && count == 0);
    CHECK(detr_results_get(results, 0, NULL) != NULL);
    detr_results_free(results);

    /* Nothing found, and no masks */
    CHECK(detr_detect(model, images, 1, 0.95F, &results) == DETR_OK);
    detr_results_get(results, 0, &count);
    CHECK(count == 0);
    detr_results_free(results);
    detr_close(model);
    snprintf(path, sizeof path, "%s/right.onnx", argv[1]);
    CHECK(detr_open(path, 0, 1, &model) == DETR_OK);
    CHECK(detr_detect(model, images, 1, 0.5F, &results) == DETR_OK);
    const detr_detection* plain = detr_results_get(results, 0, &count);
    CHECK(count == 2 && plain[0].mask == NULL && plain[0].mask_height == 0);
    detr_results_free(results);

    /* Errors: a status, a text, and no object */
    results = (detr_results*)images;
    CHECK(detr_detect(model, images, 1, 1.5F, &results) == DETR_ERROR_INPUT && results == NULL);
    CHECK(strstr(detr_last_error(), "threshold") != NULL);
    images[0].color = DETR_BGR;
    CHECK(detr_detect(model, images, 1, 0.5F, &results) == DETR_ERROR_INPUT && strstr(detr_last_error(), "--bgr") != NULL);
    images[0].color = 7;
    CHECK(detr_detect(model, images, 1, 0.5F, &results) == DETR_ERROR_INPUT &&
          strstr(detr_last_error(), "DETR_RGB") != NULL);
    CHECK(detr_detect(NULL, images, 1, 0.5F, &results) == DETR_ERROR_INPUT);
    CHECK(detr_detect(model, NULL, 1, 0.5F, &results) == DETR_ERROR_INPUT);
    CHECK(detr_detect(model, NULL, 0, 0.5F, &results) == DETR_ERROR_INPUT && strstr(detr_last_error(), "no image") != NULL);
    CHECK(detr_detect(model, images, (size_t)-1 / 64, 0.5F, NULL) == DETR_ERROR_INPUT);
    detr_close(model);
    model = (detr_model*)images;
    CHECK(detr_open("missing.onnx", 0, 1, &model) == DETR_ERROR_FILE && model == NULL);
    CHECK(strstr(detr_last_error(), "missing.onnx") != NULL);
    CHECK(detr_open(NULL, 0, 1, &model) == DETR_ERROR_INPUT);
    CHECK(detr_open(path, 0, 1, NULL) == DETR_ERROR_INPUT);
    CHECK(detr_open(path, -1, 1, &model) == DETR_ERROR_INPUT);
    CHECK(detr_results_get(NULL, 0, &count) == NULL && count == 0);
    detr_close(NULL);
    detr_results_free(NULL);

    printf("%d failures\n", failures);
    return failures == 0 ? 0 : 1;
}
