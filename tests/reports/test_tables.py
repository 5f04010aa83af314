"""Tables in four languages: the same cells, escaped, with their protocol."""

import csv
import io
import re
from html.parser import HTMLParser

import pandas as pd
import pytest

from toco_lab.reports.tables import Table, csv_table, html_table, latex_table, latex_text, markdown_table, markdown_text

EVIL = "a|b & <b>50 %</b> $x_1^2$ {~#} \\end{table} [c]* `d`\nnext"


@pytest.fixture
def table():
    """Two quantities of two runs; both were measured on val, one with flip; b had another mask for the CAM."""
    frame = pd.DataFrame({"quantity": ["CAM", "labels"], "a": ["60.0", "90.0"], "b": ["45.0", "-"]})
    details = pd.DataFrame({"quantity": ["", ""], "a": ["seed 0", "seed 0"], "b": ["seed 1 · no mask", ""]})
    protocol = {"CAM": "split val · flip", "labels": "split val"}
    return Table("scores", "Scores in per cent", frame, protocol, details, ("seed",))


def rows(text):
    return list(csv.reader(io.StringIO(text)))


def test_the_protocol_is_said_once_and_what_differs_by_name(table):
    assert table.protocols() == ["split val", "CAM: flip"]
    assert table.particulars() == ["a: seed 0", "b: seed 1 · no mask (CAM)"]


def test_turned_means_rows_and_what_holds_for_a_run_stands_at_its_name(table):
    turned = table.turned("run")
    assert turned.frame.to_numpy().tolist() == [["a", "60.0", "90.0"], ["b", "45.0", "-"]]
    assert list(turned.frame) == ["run", "CAM", "labels"]
    assert turned.details.to_numpy().tolist() == [["seed 0", "", ""], ["seed 1", "no mask", ""]]
    assert turned.protocols() == table.protocols()
    assert turned.particulars() == ["a: seed 0", "b: seed 1 · no mask (CAM)"]


def test_no_protocol_is_said_to_be_none(table):
    bare = Table(table.name, table.caption, table.frame, {"CAM": "split val", "labels": ""})
    assert bare.protocols() == ["CAM: split val", "labels: not recorded"]


def test_csv_has_cells_and_protocol(table):
    assert rows(csv_table(table)) == [
        ["quantity", "a", "b", "a, measured with", "b, measured with", "protocol"],
        ["CAM", "60.0", "45.0", "seed 0", "seed 1 · no mask", "split val · flip"],
        ["labels", "90.0", "-", "seed 0", "", "split val"],
    ]
    assert rows(csv_table(table.turned("run"))) == [
        ["run", "CAM", "labels", "run, measured with", "CAM, measured with"],
        ["a", "60.0", "90.0", "seed 0", ""],
        ["b", "45.0", "-", "seed 1", "no mask"],
        ["protocol", "split val · flip", "split val", "", ""],
    ]


def test_csv_does_not_run_in_a_spreadsheet():
    frame = pd.DataFrame({"class": ["=1+1", "@x", "+cmd", "-0.5", "+26.9 [1, 2]", "-"]})
    first = [row[0] for row in rows(csv_table(Table("t", "c", frame)))]
    assert first == ["class", "'=1+1", "'@x", "'+cmd", "-0.5", "+26.9 [1, 2]", "-"]


def test_markdown_keeps_its_columns_whatever_a_cell_holds():
    frame = pd.DataFrame({"run": [EVIL, "b"], EVIL: ["1", EVIL]})
    lines = [line for line in markdown_table(Table("t", EVIL, frame)).splitlines() if line.startswith("|")]
    assert len(lines) == 4
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in lines} == {3}
    assert "<b>" not in "".join(lines)


def test_markdown_text_by_hand():
    assert markdown_text("w_ptc | *a* <b> [x](y) #1 $2\n3") == r"w\_ptc \| \*a\* &lt;b&gt; \[x\](y) \#1 \$2 3"


def test_latex_text_by_hand():
    assert latex_text("w_ptc 50% & #1 {a} $x$ ~^\\") == (
        r"w\_ptc 50\% \& \#1 \{a\} \$x\$ \textasciitilde{}\textasciicircum{}\textbackslash{}"
    )
    assert latex_text("|cos| < 1 ± 2\n\x07") == r"\textbar{}cos\textbar{} \textless{} 1 $\pm$ 2"


def test_latex_is_balanced_and_names_the_protocol(table):
    frame = table.frame.assign(quantity=[EVIL, "[labels"])
    for text in (latex_table(table), latex_table(Table("t", EVIL, frame, {"": EVIL}))):
        bare = re.sub(r"\\[{}%&$#_]", "", text)  # without what is escaped
        depth = 0
        for letter in bare:
            depth += {"{": 1, "}": -1}.get(letter, 0)
            assert depth >= 0
        assert depth == 0 and bare.count("$") % 2 == 0 and "#" not in bare and "%" not in bare
        assert text.count(r"\begin{") == text.count(r"\end{") == 2
        assert {line.count("&") for line in bare.splitlines() if line.endswith(r"\\")} == {2}
        for rule in (r"\toprule", r"\midrule", r"\bottomrule"):
            assert text.count(rule) == 1
        body = text.partition(r"\toprule")[2].partition(r"\bottomrule")[0].split("\\\\\n")
        assert all(not row.strip().startswith(("[", "*")) for row in body)  # \\ and \toprule would take it
    text = latex_table(table)
    assert r"\caption{Scores in per cent. split val. CAM: flip.}" in text
    assert r"\footnotesize a: seed 0. b: seed 1 $\cdot$ no mask (CAM)." in text
    assert r"{}CAM & 60.0 & 45.0 \\" in text


def test_a_wide_table_is_scaled_to_the_page():
    wide = latex_table(Table("t", "c", pd.DataFrame({str(i): ["x"] for i in range(7)})))
    assert r"\resizebox{\linewidth}{!}{\begin{tabular}{lllllll}" in wide and r"\end{tabular}}" in wide


def test_html_is_escaped_and_has_the_protocol_in_a_column(table):
    class Cells(HTMLParser):
        def handle_starttag(self, tag, attrs):
            found.append(tag)

    found = []
    Cells().feed(html_table(Table("t", "c", pd.DataFrame({"run": [EVIL], "state": [EVIL]}), {EVIL: EVIL})))
    assert found.count("td") == 3 and found.count("b") == 1  # name, protocol, state; the one <b> is ours
    text = html_table(table, colours={"CAM": "#123456"})
    assert text.count("split val · flip") == 1 and 'style="background:#123456"' in text
    assert '<p class="protocol">split val</p>' in html_table(table.turned("run"))


def test_missing_values_of_rows_are_dashes():
    table = Table.of("t", "c", [{"x": 1, "y": None}, {"x": True}])
    assert table.frame.to_numpy().tolist() == [["1", "-"], ["True", "-"]]
