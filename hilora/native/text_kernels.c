/* What a decision does with the letters of a text, without the dozens of array operations that NumPy needs for it.

   Functions keep the interpreter's lock, because the tables below are shared. Of texts of a few lines each takes a tenth
   of a millisecond or less.
   A gram is a number of 16 bits, so no number that comes from outside can lie beyond a table of all of them. */

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <math.h>
#include <stdint.h>
#include <string.h>

#define NUM_GRAMS 65536
#define LONGEST_GRAM 3
#define MAX_COMPARED 12

/* Weights of the grams of the text at hand, 0 for all others; every function leaves it as it found it. */
static float asked_weight[NUM_GRAMS];
/* Which of the compared samples have a gram, a bit each; left empty, too. */
static uint16_t owners[NUM_GRAMS];

static void ask(const uint16_t *ids, const float *weights, Py_ssize_t num_ids) {
    for (Py_ssize_t i = 0; i < num_ids; i++) asked_weight[ids[i]] = weights[i];
}

static void forget(const uint16_t *ids, Py_ssize_t num_ids) {
    for (Py_ssize_t i = 0; i < num_ids; i++) asked_weight[ids[i]] = 0.0f;
}

/* What the grams of one sample weigh for the text at hand: four sums, so that no addition waits for the one before. */
static double shared_weight(const uint16_t *ids, Py_ssize_t num_ids) {
    double sums[4] = {0.0, 0.0, 0.0, 0.0};
    Py_ssize_t i = 0;
    for (; i + 4 <= num_ids; i += 4)
        for (int lane = 0; lane < 4; lane++) sums[lane] += asked_weight[ids[i + lane]];
    for (; i < num_ids; i++) sums[0] += asked_weight[ids[i]];
    return (sums[0] + sums[1]) + (sums[2] + sums[3]);
}

/* The same of grams that count more than once. */
static double counted_weight(const uint16_t *ids, const uint8_t *counts, Py_ssize_t num_ids) {
    double sums[4] = {0.0, 0.0, 0.0, 0.0};
    Py_ssize_t i = 0;
    for (; i + 4 <= num_ids; i += 4)
        for (int lane = 0; lane < 4; lane++) sums[lane] += asked_weight[ids[i + lane]] * counts[i + lane];
    for (; i < num_ids; i++) sums[0] += asked_weight[ids[i]] * counts[i];
    return (sums[0] + sums[1]) + (sums[2] + sums[3]);
}

/* gram_ids(points, ids): characters as uint32 [P] -> the numbers of their sequences of one to three, each once and
   rising, into uint16 [3 P at least]; how many. The hashes are those of hilora/character_grams.py. */
static PyObject *gram_ids(PyObject *self, PyObject *args) {
    (void)self;
    Py_buffer points, ids;
    if (!PyArg_ParseTuple(args, "y*w*", &points, &ids)) return NULL;
    const Py_ssize_t num_points = points.len / (Py_ssize_t)sizeof(uint32_t);
    const int fits = ids.len >= LONGEST_GRAM * num_points * (Py_ssize_t)sizeof(uint16_t);
    Py_ssize_t num_ids = 0;
    if (fits) {
        static uint64_t is_there[NUM_GRAMS / 64];
        const uint32_t *point = points.buf;
        uint16_t *found = ids.buf;
        for (uint32_t length = 1; length <= LONGEST_GRAM; length++) {
            for (Py_ssize_t first = 0; first + (Py_ssize_t)length <= num_points; first++) {
                uint32_t hash = length;
                for (uint32_t i = 0; i < length; i++) hash = (hash * 0x01000193u) ^ point[first + i];
                hash = (hash ^ (hash >> 16)) * 0x85EBCA6Bu;
                hash = (hash ^ (hash >> 13)) * 0xC2B2AE35u;
                const uint16_t id = (uint16_t)(hash ^ (hash >> 16));
                is_there[id >> 6] |= (uint64_t)1 << (id & 63);
            }
        }
        for (uint32_t word = 0; word < NUM_GRAMS / 64; word++) {
            for (uint64_t bits = is_there[word]; bits; bits &= bits - 1)
                found[num_ids++] = (uint16_t)(word * 64 + (uint32_t)__builtin_ctzll(bits));
            is_there[word] = 0;
        }
    } else {
        PyErr_Format(PyExc_ValueError, "%zd characters have more grams than %zd bytes hold", num_points, ids.len);
    }
    PyBuffer_Release(&points);
    PyBuffer_Release(&ids);
    return fits ? PyLong_FromSsize_t(num_ids) : NULL;
}

/* lexical_scores(ids, counts, width, scales, commons, places, asked, weight_of, common_of, scores): rows of grams, uint16
   [L, W], how often each occurs, uint8 [L, W], and W; two factors of each row, float32 [L]; places of rows, int64 [C];
   the text's grams, uint16 [G]; two numbers of every gram, float32. Into scores, float64 [C]: see
   hilora/lexical_pool.py. */
static PyObject *lexical_scores(PyObject *self, PyObject *args) {
    (void)self;
    Py_buffer given[9];
    Py_ssize_t width;
    if (!PyArg_ParseTuple(args, "y*y*ny*y*y*y*y*y*w*", &given[0], &given[1], &width, &given[2], &given[3], &given[4],
                          &given[5], &given[6], &given[7], &given[8]))
        return NULL;
    const uint16_t *ids = given[0].buf, *asked = given[5].buf;
    const uint8_t *counts = given[1].buf;
    const float *scales = given[2].buf, *commons = given[3].buf, *weight_of = given[6].buf, *common_of = given[7].buf;
    const int64_t *places = given[4].buf;
    double *scores = given[8].buf;
    const Py_ssize_t num_rows = width > 0 ? given[1].len / width : 0;
    const Py_ssize_t num_places = given[4].len / (Py_ssize_t)sizeof *places;
    const Py_ssize_t num_asked = given[5].len / (Py_ssize_t)sizeof *asked;
    const Py_ssize_t table = NUM_GRAMS * (Py_ssize_t)sizeof(float);
    int fits = given[1].len == num_rows * width && given[0].len == 2 * given[1].len &&
               given[2].len == num_rows * (Py_ssize_t)sizeof *scales && given[3].len == given[2].len &&
               given[6].len == table && given[7].len == table && given[8].len == num_places * (Py_ssize_t)sizeof *scores;
    for (Py_ssize_t i = 0; fits && i < num_places; i++) fits = places[i] >= 0 && places[i] < num_rows;
    if (fits) {
        double squares = 0.0, common = 0.0;
        for (Py_ssize_t i = 0; i < num_asked; i++) {
            const float square = weight_of[asked[i]] * weight_of[asked[i]];
            asked_weight[asked[i]] = square;
            squares += square;
            common += common_of[asked[i]];
        }
        const double length = squares > 0.0 ? sqrt(sqrt(squares)) : 1.0;
        for (Py_ssize_t i = 0; i < num_places; i++) {
            const Py_ssize_t row = places[i];
            const double product = counted_weight(ids + row * width, counts + row * width, width);
            /* Single precision, so that rows that are equal have a spread of exactly 0. */
            scores[i] = (float)((product * scales[row] - common * commons[row]) / length);
        }
        forget(asked, num_asked);
    } else {
        PyErr_SetString(PyExc_ValueError, "rows, places, tables and scores do not belong together");
    }
    for (int i = 0; i < 9; i++) PyBuffer_Release(&given[i]);
    if (!fits) return NULL;
    Py_RETURN_NONE;
}

/* An adapter's best sample. */
typedef struct {
    int64_t entrant, ordinal;
    const uint16_t *ids;
    Py_ssize_t num_ids;
    double alone, shared, length;
} Best;

/* The best sample of one adapter for the text at hand; 0 unless its buffers belong together. */
static int best_sample(const Py_buffer *ids, const Py_buffer *sizes, const Py_buffer *lengths, double text, Best *best) {
    const uint16_t *next = ids->buf;
    Py_ssize_t left = ids->len / (Py_ssize_t)sizeof(uint16_t);
    const Py_ssize_t num_samples = sizes->len / (Py_ssize_t)sizeof(uint32_t);
    if (lengths->len != num_samples * (Py_ssize_t)sizeof(double)) return 0;
    best->alone = -1.0;
    for (Py_ssize_t ordinal = 0; ordinal < num_samples; ordinal++) {
        const Py_ssize_t num_ids = ((const uint32_t *)sizes->buf)[ordinal];
        const double length = ((const double *)lengths->buf)[ordinal];
        if (num_ids > left) return 0;
        const double shared = shared_weight(next, num_ids);
        const double alone = shared * shared / ((length > 0.0 ? length : 1.0) * text);
        if (alone > best->alone) {
            best->alone = alone, best->shared = shared, best->length = length;
            best->ordinal = ordinal, best->ids = next, best->num_ids = num_ids;
        }
        next += num_ids;
        left -= num_ids;
    }
    return left == 0;
}

/* Adds the weight of one gram to every two samples that both have it; rows of `both` before columns. */
static void add_to_pairs(uint16_t bits, double weight, double both[MAX_COMPARED][MAX_COMPARED]) {
    int rows[MAX_COMPARED], num_rows = 0;
    for (int row = 0; row < MAX_COMPARED; row++)
        if (bits >> row & 1) rows[num_rows++] = row;
    for (int i = 0; i < num_rows; i++)
        for (int j = i + 1; j < num_rows; j++) both[rows[i]][rows[j]] += weight;
}

/* Compares the kept samples in pairs; 0 where none explains more than `least`, which a bound tells of most texts.
   `weight_of` is of every gram there is. Writes both tables whole unless the bound has told. */
static int compare(const Best *kept, int num_kept, const uint16_t *asked, const float *weights, Py_ssize_t num_asked,
                   const float *weight_of, double text, double least, double *joint, double *least_own) {
    double both_asked[MAX_COMPARED][MAX_COMPARED] = {{0.0}}, both[MAX_COMPARED][MAX_COMPARED] = {{0.0}};
    for (int row = 0; row < num_kept; row++)
        for (Py_ssize_t i = 0; i < kept[row].num_ids; i++) owners[kept[row].ids[i]] |= (uint16_t)(1 << row);
    for (Py_ssize_t i = 0; i < num_asked; i++) add_to_pairs(owners[asked[i]], weights[i], both_asked);
    double most = 0.0;
    for (int i = 0; i < num_kept; i++)
        for (int j = i + 1; j < num_kept; j++) {
            const double covered = kept[i].shared + kept[j].shared - both_asked[i][j];
            /* Two samples have at least what one has, and what the other one has of the text beyond that. */
            const double first = kept[i].length + kept[j].shared, second = kept[j].length + kept[i].shared;
            const double least_union = (first > second ? first : second) - both_asked[i][j];
            const double bound = covered * covered / (least_union * text);
            if (bound > most) most = bound;
        }
    const int is_near = most > least;
    for (int row = 0; row < num_kept; row++)
        for (Py_ssize_t i = 0; i < kept[row].num_ids; i++) {
            const uint16_t id = kept[row].ids[i];
            if (is_near && owners[id]) add_to_pairs(owners[id], weight_of[id], both);
            owners[id] = 0;
        }
    if (!is_near) return 0;
    most = 0.0;
    for (int i = 0; i < num_kept; i++)
        for (int j = 0; j < num_kept; j++) {
            const int low = i < j ? i : j, high = i < j ? j : i;
            const double covered = kept[i].shared + kept[j].shared - both_asked[low][high];
            const double length = kept[i].length + kept[j].length - both[low][high];
            const double smaller = kept[i].shared < kept[j].shared ? kept[i].shared : kept[j].shared;
            joint[i * num_kept + j] = i == j ? 0.0 : covered * covered / (length * text);
            least_own[i * num_kept + j] = i == j ? 0.0 : (smaller - both_asked[low][high]) / text;
            if (joint[i * num_kept + j] > most) most = joint[i * num_kept + j];
        }
    return most > least;
}

/* Keeps the best few, those that explain most first and equal ones in their order. */
static int keep(Best *kept, int num_kept, Best found) {
    int at = num_kept;
    while (at > 0 && kept[at - 1].alone < found.alone) at--;
    if (at == MAX_COMPARED) return num_kept;
    const int num_moved = (num_kept < MAX_COMPARED ? num_kept : MAX_COMPARED - 1) - at;
    memmove(kept + at + 1, kept + at, (size_t)num_moved * sizeof *kept);
    kept[at] = found;
    return num_kept < MAX_COMPARED ? num_kept + 1 : MAX_COMPARED;
}

/* contest(entrants, asked, weights, weight_of, least, least_gain, whose, figures, joint, least_own): see
   hilora/skill_contest.py. `entrants`: a list of (ids uint16, sizes uint32, lengths float64); the text's grams, uint16
   [G], and their weights, float32 [G]; the weights of every gram, float32. Into whose, int64 [2, 12]: adapter and
   sample; figures, float64 [2, 12]: how much each explains and weighs; two tables of at most 12 times 12, rows side by
   side. How many are compared: 0 where no two explain enough. */
static PyObject *contest(PyObject *self, PyObject *args) {
    (void)self;
    PyObject *entrants;
    Py_buffer given[7];
    double least, least_gain;
    if (!PyArg_ParseTuple(args, "O!y*y*y*ddw*w*w*w*", &PyList_Type, &entrants, &given[0], &given[1], &given[2], &least,
                          &least_gain, &given[3], &given[4], &given[5], &given[6]))
        return NULL;
    const Py_ssize_t num_asked = given[0].len / (Py_ssize_t)sizeof(uint16_t);
    const Py_ssize_t num_entrants = PyList_GET_SIZE(entrants);
    const Py_ssize_t square = MAX_COMPARED * MAX_COMPARED * (Py_ssize_t)sizeof(double);
    int fits = given[1].len == num_asked * (Py_ssize_t)sizeof(float) &&
               given[2].len == NUM_GRAMS * (Py_ssize_t)sizeof(float) &&
               given[3].len == 2 * MAX_COMPARED * (Py_ssize_t)sizeof(int64_t) &&
               given[4].len == 2 * MAX_COMPARED * (Py_ssize_t)sizeof(double) && given[5].len == square &&
               given[6].len == square;
    const uint16_t *asked = given[0].buf;
    const float *weights = given[1].buf;
    double text = 0.0;
    for (Py_ssize_t i = 0; fits && i < num_asked; i++) text += weights[i];
    Best kept[MAX_COMPARED];
    int num_kept = 0;
    Py_buffer *held = PyMem_Calloc((size_t)(3 * num_entrants + 1), sizeof *held);
    Py_ssize_t num_held = 0;
    if (!held) {
        PyErr_NoMemory();
    } else if (fits && text > 0.0) {
        ask(asked, weights, num_asked);
        for (Py_ssize_t entrant = 0; fits && entrant < num_entrants; entrant++) {
            Best found = {.entrant = entrant};
            Py_buffer *own = held + num_held;
            fits = PyArg_ParseTuple(PyList_GET_ITEM(entrants, entrant), "y*y*y*", own, own + 1, own + 2);
            if (!fits) break;
            num_held += 3;
            fits = best_sample(own, own + 1, own + 2, text, &found);
            if (fits && found.alone > 0.0) num_kept = keep(kept, num_kept, found);
        }
        forget(asked, num_asked);
        if (fits && num_kept > 1) {
            const double gain = least_gain * kept[0].alone;
            if (!compare(kept, num_kept, asked, weights, num_asked, given[2].buf, text, least > gain ? least : gain,
                         given[5].buf, given[6].buf))
                num_kept = 0;
        } else {
            num_kept = 0;
        }
        for (int row = 0; row < num_kept; row++) {
            ((int64_t *)given[3].buf)[row] = kept[row].entrant;
            ((int64_t *)given[3].buf)[MAX_COMPARED + row] = kept[row].ordinal;
            ((double *)given[4].buf)[row] = kept[row].alone;
            ((double *)given[4].buf)[MAX_COMPARED + row] = kept[row].length;
        }
    }
    for (Py_ssize_t i = 0; i < num_held; i++) PyBuffer_Release(&held[i]);
    PyMem_Free(held);
    for (int i = 0; i < 7; i++) PyBuffer_Release(&given[i]);
    if (PyErr_Occurred()) return NULL;
    if (!fits) {
        PyErr_SetString(PyExc_ValueError, "grams, sizes, lengths and tables do not belong together");
        return NULL;
    }
    return PyLong_FromLong(num_kept);
}

static PyMethodDef functions[] = {
    {"gram_ids", gram_ids, METH_VARARGS, "The distinct grams of a text, rising."},
    {"lexical_scores", lexical_scores, METH_VARARGS, "How much the wording of a text is that of some adapters."},
    {"contest", contest, METH_VARARGS, "Which two adapters' samples explain a text together, and how well."},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, .m_name = "_native", .m_size = -1, .m_methods = functions};

PyMODINIT_FUNC PyInit__native(void) { return PyModule_Create(&definition); }
