"""Triton's kernels of attention within a window: what each program does. `window_attention` launches them.

Programs find their blocks by themselves, since the host does not know where sequences begin. Sequence s,
whose first token is start[s], takes the slots from start[s] // BLOCK + s on, one for each of its blocks: they
end before the next sequence's begin, and there are at most tokens // BLOCK + sequences of them.

Logarithms and powers are to the base of 2, as the GPU computes them: scores come with a scale that has
log2(e) in it.

Each block visits as many tiles as the window needs within a long sequence (TILES). At a sequence's ends some
of them are empty; a number that does not vary lets the compiler load the next while it computes with one.
"""

import triton
import triton.language as tl


@triton.jit
def _place(ends, sequences, num_heads, BLOCK: tl.constexpr):
    """What a program works on: a head, a sequence's first token and length, and which of its blocks."""
    slot, head = tl.program_id(0) // num_heads, tl.program_id(0) % num_heads
    begun, first = 0, 0
    while first < sequences:
        numbers = first + tl.arange(0, 128)
        starts = tl.load(ends + numbers, mask=numbers < sequences, other=0)
        begun += tl.sum(((numbers < sequences) & (starts // BLOCK + numbers <= slot)).to(tl.int32))
        first += 128
    sequence = begun - 1
    start = tl.load(ends + sequence)
    length = tl.load(ends + sequence + 1) - start
    return head, start, length, slot - (start // BLOCK + sequence)


@triton.jit
def _load(
    rows,
    start,
    first,
    length,
    width,
    column,
    BLOCK: tl.constexpr,
    BLOCK_D: tl.constexpr,
    HEAD_DIM: tl.constexpr,
):
    """A tile (BLOCK, head_dim rounded up) of a sequence from its token `first` on; zeros outside of it."""
    places, dims = tl.arange(0, BLOCK)[:, None], tl.arange(0, BLOCK_D)[None, :]
    corner = rows + (start + first).to(tl.int64) * width + column
    mask = (first + places >= 0) & (first + places < length) & (dims < HEAD_DIM)
    return tl.load(corner + places * width + dims, mask=mask, other=0.0)


@triton.jit
def _store(
    rows,
    values,
    start,
    first,
    length,
    width,
    column,
    BLOCK: tl.constexpr,
    BLOCK_D: tl.constexpr,
    HEAD_DIM: tl.constexpr,
):
    places, dims = tl.arange(0, BLOCK)[:, None], tl.arange(0, BLOCK_D)[None, :]
    corner = rows + (start + first).to(tl.int64) * width + column
    mask = (first + places < length) & (dims < HEAD_DIM)
    tl.store(corner + places * width + dims, values.to(rows.dtype.element_ty), mask=mask)


@triton.jit
def _near(places, others, length, WINDOW: tl.constexpr):
    """Whether a token (rows) and another (columns) see each other; nothing outside the sequence is seen."""
    others = tl.where((others >= 0) & (others < length), others, 1 << 30)
    return tl.abs(places[:, None] - others[None, :]) < WINDOW


@triton.jit(do_not_specialize=["num_tokens", "sequences"])
def forward(
    query,
    key,
    value,
    ends,
    out,
    log_sums,
    query_width,
    key_width,
    value_width,
    scale,
    num_heads,
    num_tokens,
    sequences,
    WINDOW: tl.constexpr,
    TILES: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_D: tl.constexpr,
    HEAD_DIM: tl.constexpr,
):
    """Attended values, and the logarithm of each query's sum of exponentials."""
    head, start, length, block = _place(ends, sequences, num_heads, BLOCK)
    own = block * BLOCK
    if own < length:
        column, queries = head * HEAD_DIM, own + tl.arange(0, BLOCK)
        asked = _load(query, start, own, length, query_width, column, BLOCK, BLOCK_D, HEAD_DIM)
        highest = tl.full((BLOCK,), -1e30, tl.float32)  # finite: a row may see nothing in a tile
        total = tl.zeros((BLOCK,), tl.float32)
        attended = tl.zeros((BLOCK, BLOCK_D), tl.float32)
        for tile in range(TILES):
            first = own + (tile - TILES // 2) * BLOCK
            keys = _load(key, start, first, length, key_width, column, BLOCK, BLOCK_D, HEAD_DIM)
            values = _load(value, start, first, length, value_width, column, BLOCK, BLOCK_D, HEAD_DIM)
            scores = tl.dot(asked, tl.trans(keys), input_precision="ieee") * scale
            near = _near(queries, first + tl.arange(0, BLOCK), length, WINDOW)
            scores = tl.where(near, scores, float("-inf"))
            higher = tl.maximum(highest, tl.max(scores, 1))
            powers, shrink = tl.exp2(scores - higher[:, None]), tl.exp2(highest - higher)
            total = total * shrink + tl.sum(powers, 1)
            attended = attended * shrink[:, None]
            attended = tl.dot(powers.to(values.dtype), values, attended, input_precision="ieee")
            highest = higher
        total = tl.where(queries < length, total, 1.0)
        attended = attended / total[:, None]
        _store(out, attended, start, own, length, num_heads * HEAD_DIM, column, BLOCK, BLOCK_D, HEAD_DIM)
        sums = log_sums + head * num_tokens + start + queries
        tl.store(sums, highest + tl.log2(total), mask=queries < length)


@triton.jit(do_not_specialize=["num_tokens", "sequences"])
def backward_queries(
    query,
    key,
    value,
    ends,
    gradient,
    out,
    log_sums,
    shares,
    to_query,
    query_width,
    key_width,
    value_width,
    scale,
    plain_scale,
    num_heads,
    num_tokens,
    sequences,
    WINDOW: tl.constexpr,
    TILES: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_D: tl.constexpr,
    HEAD_DIM: tl.constexpr,
):
    """Gradient of the queries, and `shares` for `backward_keys`."""
    head, start, length, block = _place(ends, sequences, num_heads, BLOCK)
    own = block * BLOCK
    if own < length:
        column, queries, width = head * HEAD_DIM, own + tl.arange(0, BLOCK), num_heads * HEAD_DIM
        asked = _load(query, start, own, length, query_width, column, BLOCK, BLOCK_D, HEAD_DIM)
        arriving = _load(gradient, start, own, length, width, column, BLOCK, BLOCK_D, HEAD_DIM)
        attended = _load(out, start, own, length, width, column, BLOCK, BLOCK_D, HEAD_DIM)
        # What softmax's derivative takes off each weight's gradient: all of them, weighted.
        share = tl.sum(arriving.to(tl.float32) * attended.to(tl.float32), 1)
        row = head * num_tokens + start + queries
        tl.store(shares + row, share, mask=queries < length)
        log_sum = tl.load(log_sums + row, mask=queries < length, other=0.0)
        found = tl.zeros((BLOCK, BLOCK_D), tl.float32)
        for tile in range(TILES):
            first = own + (tile - TILES // 2) * BLOCK
            keys = _load(key, start, first, length, key_width, column, BLOCK, BLOCK_D, HEAD_DIM)
            values = _load(value, start, first, length, value_width, column, BLOCK, BLOCK_D, HEAD_DIM)
            scores = tl.dot(asked, tl.trans(keys), input_precision="ieee") * scale
            near = _near(queries, first + tl.arange(0, BLOCK), length, WINDOW)
            weights = tl.exp2(tl.where(near, scores - log_sum[:, None], float("-inf")))
            to_weights = tl.dot(arriving, tl.trans(values), input_precision="ieee")
            to_scores = (weights * (to_weights - share[:, None])).to(keys.dtype)
            found = tl.dot(to_scores, keys, found, input_precision="ieee")
        _store(to_query, found * plain_scale, start, own, length, width, column, BLOCK, BLOCK_D, HEAD_DIM)


@triton.jit(do_not_specialize=["num_tokens", "sequences"])
def backward_keys(
    query,
    key,
    value,
    ends,
    gradient,
    log_sums,
    shares,
    to_key,
    to_value,
    query_width,
    key_width,
    value_width,
    scale,
    plain_scale,
    num_heads,
    num_tokens,
    sequences,
    WINDOW: tl.constexpr,
    TILES: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_D: tl.constexpr,
    HEAD_DIM: tl.constexpr,
):
    """Gradients of keys and values."""
    head, start, length, block = _place(ends, sequences, num_heads, BLOCK)
    own = block * BLOCK
    if own < length:
        column, places, width = head * HEAD_DIM, own + tl.arange(0, BLOCK), num_heads * HEAD_DIM
        keys = _load(key, start, own, length, key_width, column, BLOCK, BLOCK_D, HEAD_DIM)
        values = _load(value, start, own, length, value_width, column, BLOCK, BLOCK_D, HEAD_DIM)
        found_key = tl.zeros((BLOCK, BLOCK_D), tl.float32)
        found_value = tl.zeros((BLOCK, BLOCK_D), tl.float32)
        for tile in range(TILES):
            first = own + (tile - TILES // 2) * BLOCK
            queries = first + tl.arange(0, BLOCK)
            asked = _load(query, start, first, length, query_width, column, BLOCK, BLOCK_D, HEAD_DIM)
            arriving = _load(gradient, start, first, length, width, column, BLOCK, BLOCK_D, HEAD_DIM)
            row, inside = head * num_tokens + start + queries, (queries >= 0) & (queries < length)
            log_sum = tl.load(log_sums + row, mask=inside, other=0.0)
            share = tl.load(shares + row, mask=inside, other=0.0)
            # All of (keys, queries), the other way round than forward.
            scores = tl.dot(keys, tl.trans(asked), input_precision="ieee") * scale
            near = _near(places, queries, length, WINDOW)
            weights = tl.exp2(tl.where(near, scores - log_sum[None, :], float("-inf")))
            found_value = tl.dot(weights.to(keys.dtype), arriving, found_value, input_precision="ieee")
            to_weights = tl.dot(values, tl.trans(arriving), input_precision="ieee")
            to_scores = (weights * (to_weights - share[None, :])).to(keys.dtype)
            found_key = tl.dot(to_scores, asked, found_key, input_precision="ieee")
        _store(to_key, found_key * plain_scale, start, own, length, width, column, BLOCK, BLOCK_D, HEAD_DIM)
        _store(to_value, found_value, start, own, length, width, column, BLOCK, BLOCK_D, HEAD_DIM)
