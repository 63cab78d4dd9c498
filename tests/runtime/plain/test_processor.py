"""Names of processors, from what Linux says of them."""

from starflow.runtime.plain.processor import processor, processor_of

EPYC = """processor\t: 0
vendor_id\t: AuthenticAMD
cpu family\t: 23
model\t\t: 1
model name\t: AMD EPYC
flags\t\t: fpu sse4_2 avx avx2 bmi2

processor\t: 1
model name\t: AMD EPYC
"""
ARM = """processor\t: 0
Features\t: fp asimd asimddp i8mm
CPU part\t: 0xd40
"""


def test_family_and_extensions_tell_processors_of_one_name_apart() -> None:
    assert processor_of(EPYC) == "AMD EPYC, family 23, model 1, avx2"
    newer = EPYC.replace(": 23", ": 25").replace("avx2", "avx2 avx512f avx512_vnni")
    assert processor_of(newer) == "AMD EPYC, family 25, model 1, avx2, avx512f, avx512_vnni"


def test_processors_without_a_model_name() -> None:
    assert processor_of(ARM).endswith("0xd40, asimddp, i8mm")
    assert processor_of("")


def test_this_processor_has_a_name() -> None:
    assert processor() and processor() == processor()
