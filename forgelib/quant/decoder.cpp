// One token through a whole packed model in one call: embedding, blocks, recursion, head.
//
// In torch, a token of a small model waits for thousands of small operations, not for its weights. Here what lies
// between the products are loops over a few hundred floats:
//
//     decoder_model.h    the model, as addresses and sizes
//     decoder_rows.h     norm, rotary positions, attention of one token
//     decoder_dense.h    products: ternary layers by ternary_kernel.cpp, the head from float16
//     decoder_memory.h   one token of the long-term memory
//
// Compiled for each processor path by itself (decoder.py), always with -ffp-contract=off, so all give the same bits.

#include <vector>

#include "decoder_dense.h"
#include "decoder_memory.h"

namespace {

// Room for what one token needs; every part as long as the longest that is put there.
struct Room {
    std::vector<float> x, h, q, k, v, mixed, added, gate, up, weights, cosines, sines, latent, projected, gates, memory;

    void fit(const Model& model) {
        size_t inner = 0, gates_size = 0;
        for (size_t i = 0; i < model.n_blocks; i++) {
            inner = std::max(inner, model.blocks[i].feed.gate.layer.outputs);
            if (model.blocks[i].memory) gates_size = std::max(gates_size, 3 * model.blocks[i].memory->heads);
        }
        for (size_t i = 0; i < model.n_recursion; i++)
            inner = std::max(inner, model.recursion[i].feed.gate.layer.outputs);
        const size_t width = model.width, queries = model.heads * model.head_width;
        const size_t keys = model.kv_heads * model.head_width;
        for (auto* part : {&x, &h, &added, &latent}) part->resize(width);
        for (auto* part : {&gate, &up}) part->resize(std::max(inner, width));
        for (auto* part : {&k, &v}) part->resize(keys);
        for (auto* part : {&cosines, &sines}) part->resize(model.head_width / 2);
        q.resize(queries), mixed.resize(std::max(queries, 2 * width)), weights.resize(model.slots);
        projected.resize(3 * width), gates.resize(gates_size), memory.resize(4 * width);
    }
};

// One token on its way.
struct Token {
    const Model& model;
    const size_t position, threads;
    Room& room;

    size_t slot() const { return position % model.slots; }
    size_t reach() const { return std::min(position + 1, model.slots); }

    void products(const std::vector<float>& x, std::initializer_list<Product> products) {
        multiply(model, threads, x.data(), products);
    }

    // added = down(silu(gate x) * up x)
    void feed_forward(const FeedForward& feed, const std::vector<float>& x) {
        products(x, {{feed.gate, room.gate.data()}, {feed.up, room.up.data()}});
        for (size_t i = 0; i < feed.gate.layer.outputs; i++) room.gate[i] = silu(room.gate[i]) * room.up[i];
        products(room.gate, {{feed.down, room.added.data()}});
    }

    void keep(const Attention& attention) {
        rotate(model, room.cosines.data(), room.sines.data(), model.kv_heads, room.k.data());
        store(model, attention, slot(), room.k.data(), room.v.data());
    }

    void look(const Attention& attention) {
        rotate(model, room.cosines.data(), room.sines.data(), model.heads, room.q.data());
        attend(model, attention, reach(), room.q.data(), room.weights.data(), room.mixed.data());
    }

    // mixed = g y + (1 - g) m for y, what attention saw, and m, what the memory recalls of h; both normalised.
    void gate_memory(const Memory& memory) {
        const size_t width = model.width;
        float *y = room.mixed.data(), *m = y + width;
        rms_norm(y, memory.y_norm, width, model.epsilon, y);
        if (!memory.on) return;
        remember(memory, width, room.projected.data(), room.gates.data(), room.memory.data(), m);
        rms_norm(m, memory.m_norm, width, model.epsilon, m);
        products(room.mixed, {{memory.mix, room.gate.data()}});
        for (size_t i = 0; i < width; i++) {
            const float g = sigmoid(room.gate[i]);
            y[i] = g * y[i] + (1.0f - g) * m[i];
        }
    }

    // x through a block of the backbone.
    void block(const Block& block) {
        const Attention& attention = block.attention;
        const Memory* memory = block.memory;
        rms_norm(room.x.data(), block.norm, model.width, model.epsilon, room.h.data());
        if (memory && memory->on) {
            float* projected = room.projected.data();
            products(room.h, {{attention.query, room.q.data()}, {attention.key, room.k.data()},
                              {attention.value, room.v.data()}, {memory->query, projected},
                              {memory->key, projected + model.width}, {memory->value, projected + 2 * model.width},
                              {memory->gates, room.gates.data()}});
        } else {
            products(room.h, {{attention.query, room.q.data()}, {attention.key, room.k.data()},
                              {attention.value, room.v.data()}});
        }
        keep(attention);
        look(attention);
        if (memory) gate_memory(*memory);
        products(room.mixed, {{attention.out, room.added.data()}});
        add(room.x.data(), room.added.data(), model.width);
        rms_norm(room.x.data(), block.feed_norm, model.width, model.epsilon, room.h.data());
        feed_forward(block.feed, room.h);
        add(room.x.data(), room.added.data(), model.width);
    }

    // u through the recursion's net: what is added is normalised, and keys and values do not change.
    void net(std::vector<float>& u) {
        for (size_t i = 0; i < model.n_recursion; i++) {
            const Block& layer = model.recursion[i];
            products(u, {{layer.attention.query, room.q.data()}});
            look(layer.attention);
            products(room.mixed, {{layer.attention.out, room.added.data()}});
            add(u.data(), room.added.data(), model.width);
            rms_norm(u.data(), layer.norm, model.width, model.epsilon, u.data());
            feed_forward(layer.feed, u);
            add(u.data(), room.added.data(), model.width);
            rms_norm(u.data(), layer.feed_norm, model.width, model.epsilon, u.data());
        }
    }

    // h = the answer y, refined until the halting probability reaches the threshold. Returns the cycles it took.
    size_t recurse() {
        std::vector<float>&x = room.x, &y = room.h, &z = room.latent;
        for (size_t i = 0; i < model.n_recursion; i++) {
            const Attention& attention = model.recursion[i].attention;
            products(x, {{attention.key, room.k.data()}, {attention.value, room.v.data()}});
            keep(attention);
        }
        y = x;
        std::copy(model.first_latent, model.first_latent + model.width, z.begin());
        for (size_t cycle = 1;; cycle++) {
            for (size_t step = 0; step < model.micro_steps; step++) {
                for (size_t i = 0; i < model.width; i++) z[i] = (z[i] + y[i]) + x[i];
                net(z);
            }
            add(y.data(), z.data(), model.width);
            net(y);
            float sure;
            products(y, {{model.halting, &sure}});
            if (cycle >= model.max_cycles || sigmoid(sure) >= model.threshold) return cycle;
        }
    }
};

}  // namespace

// Reads the token at this position; writes logits [V] unless they are null. Returns the recursion's cycles.
// The caller has checked every size; positions are given one after the other.
extern "C" size_t decoder_step(const Model* model, size_t position, size_t id, size_t threads, float* logits) {
    static thread_local Room room;
    room.fit(*model);
    Token token{*model, position, threads, room};
    angles(*model, position, room.cosines.data(), room.sines.data());
    const float* embedded = model->embedding + id * model->width;
    std::copy(embedded, embedded + model->width, room.x.begin());
    for (size_t i = 0; i < model->n_blocks; i++) token.block(model->blocks[i]);
    rms_norm(room.x.data(), model->norm, model->width, model->epsilon, room.x.data());
    size_t cycles = 0;
    if (model->n_recursion) cycles = token.recurse();
    if (logits) token.products(cycles ? room.h : room.x, {{model->head, logits}});
    return cycles;
}
