"""The modules of one stack, in the order of registration: which block each feeds or follows.

Registration is nearly always the order in which modules run. Two things tell where it is not: a module's
name or class (an embedding is the stem, a classifier the head), and its widths (what takes the last block's
width and makes another is a head). Where they tell nothing, the order of a forward pass decides.

In the example of `hf_lpwd.layers`, embed stands before the first block and is the stem, 0. stage1 holds
blocks, so its children are walked: block 1. downsample stands before what holds another block, so it feeds
block 2. stage2 has the blocks 2 and 3. norm and head stand behind the last block: n = 4.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from hf_lpwd.layer_blocks import (
    CONTAINERS,
    DOWNSAMPLE_NAME,
    HEAD_NAME,
    INPUT_NAME,
    NORM_NAME,
    is_called,
    join,
    numbered_attributes,
)
from hf_lpwd.layer_order import Order
from hf_lpwd.layer_stacks import Place, Stack
from hf_lpwd.parameters import block_widths, full_shape, has_matrices, in_and_out

_MOST_CHANNELS_OF_AN_IMAGE = 4


class Walk:
    """Counts the blocks passed, and places what stands before, between and behind them."""

    def __init__(self, model: nn.Module, stack: Stack, order: Order) -> None:
        self.model, self.stack, self.order = model, stack, order
        self.index_of = {block: i for i, block in enumerate(stack.blocks, start=1)}
        self.n = len(stack.blocks) + 1
        self.passed = 0
        #: Modules that hold blocks, without being one.
        self.holders = {""} | {
            block[:end] for block in stack.blocks for end in range(len(block)) if block[end] == "."
        }
        self.widths = [block_widths(model.get_submodule(block)) for block in stack.blocks]
        #: Elements of a list that runs parallel to a list of stages or blocks.
        self.parallel: dict[str, Place] = {}

    def places(self) -> Iterator[tuple[str, Place]]:
        """Yields each parameter of the stack by name."""
        path = self.stack.path
        module = self.model.get_submodule(path)
        if path in self.index_of:
            yield from self._all_of(path, module, self._place(1, f"block {path}"))
        else:
            yield from self._inside(path, module, in_stage=False)

    def _inside(self, path: str, module: nn.Module, in_stage: bool) -> Iterator[tuple[str, Place]]:
        """The parameters inside of a module that holds blocks; `in_stage` if it is one of several stages."""
        self._find_parallel_lists(path, module)
        for name, _ in module.named_parameters(recurse=False):
            yield join(path, name), self._feeding(self.passed + 1)
        children = [(join(path, name), child) for name, child in module.named_children()]
        with_blocks = [child for child, _ in children if child in self.holders or child in self.index_of]
        last = [child for child, _ in children].index(with_blocks[-1])
        # Embeddings behind the blocks: what else stands there may run before them too.
        unordered = any(self._enters_by_name(*child) for child in children[last + 1 :])
        has_other_stem = self.passed == 0 and self._has_stem(with_blocks[0])
        stem_began = False
        first = self.passed + 1
        for i, (child_path, child) in enumerate(children):
            if child_path in self.index_of:
                self.passed = self.index_of[child_path]
                place = self._place(self.passed, f"block {child_path}")
            elif child_path in self.holders:
                stages = isinstance(module, CONTAINERS) and len(with_blocks) > 1
                yield from self._inside(child_path, child, in_stage or stages)
                continue
            elif self.passed == 0:
                place = self._feeding(1)
                if type(module) is not nn.Sequential:
                    place = self._before_all(child_path, child, has_other_stem, not stem_began)
                stem_began = stem_began or (place.layer == 0 and has_matrices(child))
            elif i < last:
                place = self._feeding(self.passed + 1)
            elif self.passed < self.n - 1 or (in_stage and not _only_norms(children[i:])):
                place = self._behind_stage(child_path, child, first)
            else:
                place = self._behind_all(child_path, child, unordered)
            yield from self._all_of(child_path, child, place)

    def _all_of(self, path: str, module: nn.Module, place: Place) -> Iterator[tuple[str, Place]]:
        """The parameters inside of a module that holds no block."""
        for inner_path, inner in module.named_modules(prefix=path):
            place = self.parallel.get(inner_path, place)
            for name, _ in inner.named_parameters(recurse=False):
                full_name = join(inner_path, name)
                what = place.module
                if what == "head" and "pooler" in full_name:
                    what = "pooler"
                elif what == "head" and (NORM_NAME.search(full_name) or is_called(NORM_NAME, "", inner)):
                    what = "final norm"
                yield full_name, place._replace(module=what)

    def _before_all(self, path: str, child: nn.Module, has_other_stem: bool, is_first: bool) -> Place:
        """What is registered before the first block: the stem, or a head that was made first.

        The sibling that holds the first block may have another stem; `is_first` has no weights before it.
        """
        name, stem, head = path.rpartition(".")[2], self._feeding(1), self._feeding(self.n)
        takes, makes = in_and_out(child)
        takes_image = takes is not None and takes <= _MOST_CHANNELS_OF_AN_IMAGE
        if takes_image and any(len(full_shape(parameter)) == 4 for parameter in child.parameters()):
            return stem
        if not isinstance(child, nn.Embedding) and (HEAD_NAME.fullmatch(name) or "final" in name):
            return head
        if not has_matrices(child) or is_called(INPUT_NAME, name, child) or takes_image:
            return stem
        enters, leaves = makes in self.widths[0], takes in self.widths[-1]
        upsamples = any("ConvTranspose" in type(inner).__name__ for inner in child.modules())
        if leaves and not enters and (is_first or upsamples):
            return head
        if enters and not leaves:
            return stem
        # A layer of the stem, or a head that was made before its backbone.
        return self._asked(path, stem) if has_other_stem or (leaves and not enters) else stem

    def _has_stem(self, holder: str) -> bool:
        """Whether there are weights before the first block in a module that holds it."""
        for path, module in self.model.get_submodule(holder).named_modules(prefix=holder):
            if path == self.stack.blocks[0]:
                break
            if any(parameter.ndim >= 2 for parameter in module.parameters(recurse=False)):
                return True
        return False

    def _behind_stage(self, path: str, child: nn.Module, first: int) -> Place:
        """What is registered behind the blocks of a stage, the first of which has the index `first`."""
        if is_called(DOWNSAMPLE_NAME, path.rpartition(".")[2], child):
            takes, makes = in_and_out(child)
            own = self.widths[first - 1]
            following = self.widths[self.passed] if self.passed < self.n - 1 else set()
            if makes in own - following and takes not in own:
                return self._feeding(first)
            if following:
                return self._feeding(self.passed + 1)
        elif has_matrices(child):
            return self._asked(path, self._behind(self.passed), warns=False)
        return self._behind(self.passed)

    def _behind_all(self, path: str, child: nn.Module, unordered: bool) -> Place:
        """What is registered behind the last block: the final norm and the head, or embeddings."""
        if self._enters_by_name(path, child):
            stem = self._feeding(1)
            is_table = any(isinstance(inner, nn.Embedding) for inner in child.modules())
            return stem if is_table else self._asked(path, stem, warns=False)
        if unordered and has_matrices(child) and not HEAD_NAME.fullmatch(path.rpartition(".")[2]):
            takes, makes = in_and_out(child)
            enters = makes in self.widths[0] and takes not in self.widths[-1]
            return self._asked(path, self._feeding(1) if enters else self._feeding(self.n))
        return self._feeding(self.n)

    def _enters_by_name(self, path: str, child: nn.Module) -> bool:
        name = path.rpartition(".")[2]
        return is_called(INPUT_NAME, name, child) and not HEAD_NAME.fullmatch(name)

    def _asked(self, path: str, otherwise: Place, warns: bool = True) -> Place:
        """The place of a module by the running order, where there is one."""
        before = self.order.blocks_before(path, self.stack.blocks)
        if before is None:
            if warns:
                self.order.taken_for(path, otherwise.module)
            return otherwise
        return otherwise if before == otherwise.layer else self._feeding(before + 1)

    def _feeding(self, index: int) -> Place:
        if index == 1:
            return self._place(0, "stem")
        if index == self.n:
            return self._place(self.n, "head")
        return self._place(index, f"feeds block {self.stack.blocks[index - 1]}")

    def _behind(self, index: int) -> Place:
        return self._place(index, f"after block {self.stack.blocks[index - 1]}")

    def _place(self, layer: int, module: str) -> Place:
        return Place(self.stack.name, layer, module)

    def _find_parallel_lists(self, path: str, module: nn.Module) -> None:
        """Finds lists parallel to a list of stages or of blocks: one element for each.

        Such are SegFormer's patch embeddings before and norms behind each stage. What stands between two
        such lists feeds the second.
        """
        lists = list(numbered_attributes(module).items()) + [
            (name, {join(name, key): element for key, element in child.named_children()})
            for name, child in module.named_children()
            if isinstance(child, CONTAINERS) and type(child) is not nn.Sequential
        ]
        order = [name for name, _ in module.named_modules(remove_duplicate=False)]
        lists = [(name, elements) for name, elements in lists if len(elements) >= 2]
        lists.sort(key=lambda one: order.index(next(iter(one[1]))))
        held = self.holders | self.index_of.keys()
        paths = [[join(path, element) for element in elements] for _, elements in lists]
        for i, (name, modules) in enumerate(lists):
            elements = paths[i]
            # Of lists that are numbered themselves, the numbers count.
            is_placed = not self.parallel.keys().isdisjoint({join(path, name), *elements})
            if is_placed or HEAD_NAME.fullmatch(name) or not held.isdisjoint(elements):
                continue
            preceding = [stages for stages in reversed(paths[:i]) if held.issuperset(stages)]
            following = [stages for stages in paths[i:] if held.issuperset(stages)]
            alike = name in dict(module.named_children()) and len(set(map(type, modules.values()))) == 1
            fed = [stages for stages in following if alike or stages[0] not in self.index_of]
            if DOWNSAMPLE_NAME.search(name):
                # The first stage may lack one.
                fed += [s[1:] for s in following + preceding if s[0] not in self.index_of]
            if stages := next((s for s in fed if len(s) == len(elements)), None):
                for element, stage in zip(elements, stages, strict=True):
                    self.parallel[element] = self._feeding(self._blocks_of(stage)[0])
            elif stages := next((s for s in preceding if len(s) == len(elements)), None):
                self._place_behind(elements, stages)

    def _blocks_of(self, stage: str) -> list[int]:
        return [i for block, i in self.index_of.items() if f"{block}.".startswith(f"{stage}.")]

    def _place_behind(self, elements: list[str], stages: list[str]) -> None:
        """Norms of each stage, or layers whose place within it the running order tells."""
        for element, stage in zip(elements, stages, strict=True):
            module, blocks = self.model.get_submodule(element), self._blocks_of(stage)
            if has_matrices(module) or stage in self.index_of:
                before = self.order.blocks_before(element, self.stack.blocks)
                if before not in blocks:
                    return
                self.parallel[element] = self._behind(before)
            elif stage == stages[-1]:
                self.parallel[element] = self._feeding(blocks[-1] + 1)
            else:
                self.parallel[element] = self._behind(blocks[-1])


def _only_norms(children: list[tuple[str, nn.Module]]) -> bool:
    return all(is_called(NORM_NAME, path.rpartition(".")[2], child) for path, child in children)


def place_outside(
    model: nn.Module, places: dict[str, Place], walks: dict[str, Walk], order: Order
) -> dict[str, Place]:
    """Places what is in no stack.

    Embeddings and input projections are the stem of the stack before which they stand, projections and heads
    the head of the one behind which they stand.
    """
    owners = {
        join(path, name): module
        for path, module in model.named_modules(remove_duplicate=False)
        for name, _ in module.named_parameters(recurse=False, remove_duplicate=False)
    }
    stacks, found = list(walks), {}
    next_stack: dict[str, str | None] = {}
    following = None
    for name in reversed(owners):
        next_stack[name] = following = places[name].stack if name in places else following
    previous = None
    for name, owner in owners.items():
        following = next_stack[name]
        if name in places:
            previous = places[name].stack
            continue
        is_embedding = isinstance(owner, nn.Embedding)
        is_head = not is_embedding and any(map(HEAD_NAME.fullmatch, name.split(".")))
        if previous is None and following is not None and not is_head:
            takes, makes = in_and_out(owner)
            is_head = takes in walks[following].widths[-1] and makes not in walks[following].widths[0]
        called = _stack_called(name, stacks)
        enters = not is_head and (previous is None or INPUT_NAME.search(name) is not None)
        if enters and following is not None:
            # A tower may stand between a projection and the stack that it feeds.
            candidates = stacks[stacks.index(following) :]
            fed = (one for one in candidates if order.blocks_before(name, walks[one].stack.blocks) == 0)
            stack = called or next(fed, following)
        else:
            stack = called or previous or stacks[0]
            # Behind all stacks there are heads, and in DETR and similar models embeddings of query positions.
            is_asked = following is None and not is_head and has_matrices(owner)
            enters = is_asked and order.blocks_before(name, walks[stack].stack.blocks) == 0
        found[name] = Place(stack, 0, "stem") if enters else Place(stack, walks[stack].n, "head")
    return found


def _stack_called(name: str, stacks: list[str]) -> str | None:
    """The stack whose name begins as a parameter's does: ``visual_projection``, ``vision_model``.

    Queries enter the decoder.
    """
    beginnings = {part[:3] for part in name.split(".")} | ({"dec"} if "quer" in name else set())
    return next((stack for stack in stacks if stack.split(".")[-1][:3] in beginnings), None)
