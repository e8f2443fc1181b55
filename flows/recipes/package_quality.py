"""What is good in installed packages: text that explains, against what is filled in or generated.

The labels come from paths alone. Good: documentation and the modules of libraries. Bad: licences
and lists of names, tests, generated code, type stubs and tables written as source. Tests are no bad
code, but they say the same things many times and explain little. Documents of one package are all
trained on or all tested on.
"""

from filters.path_labels import PathLabels

PACKAGE_LABELS = PathLabels(
    rules=(
        ("licence", r"(?i)(^|/)(licen[cs]es?/|licen[cs]e|copying|notice|copyright|authors|third)"),
        ("test", r"(^|/)_?(tests?|testing)/|(^|/)(test_[^/]*|[^/]*_test|conftest)\.py$"),
        (
            "generated",
            r"_pb2(_grpc)?\.py|/ATen/ops/|(^|/)_?generated[^/]*|_builtins\.py$|(lex|parse)tab\.py$"
            r"|(^|/)(uts46data|idnadata|\w*unicode_data|lang\w+model|dummy_\w+_objects)\.py$",
        ),
        ("stub", r"\.pyi$"),
        ("documentation", r"(?i)METADATA$|(^|/)readme[^/]*$|\.(md|rst)$"),
        ("library", r"[^_/]\.py$"),  # not __init__.py, which mostly imports
    ),
    positive=("documentation", "library"),
    group=r"^(?P<group>[^/-]+)",  # torch/nn and torch-2.13.0.dist-info are one package
)
