"""One thing in every language: the same cells and words, escaped, with the protocol of the numbers."""

import base64
import csv
import io
import json
import re
from html.parser import HTMLParser

import pandas as pd
import plotly.graph_objects as go
import pytest
from matplotlib.figure import Figure
from PIL import Image

from toco_lab.reports import parts
from toco_lab.reports.parts import DPI, LATEX, PLOTLY, Table, latex_text, markdown_text, paragraph, shell_lines

EVIL = "a|b & <b>50 %</b> $x_1^2$ {~#} \\end{table} [c]* `d`\nnext"


@pytest.fixture
def table():
    """Two quantities of two runs; both were measured on val, one with flip."""
    frame = pd.DataFrame({"run": ["a", "b"], "CAM": ["60.0", "45.0"], "labels": ["90.0", "-"]})
    return Table(
        "scores", "Scores in per cent", frame, {"CAM": "split val · flip", "labels": "split val"}, {"a": "#123456"}
    )


class Tags(HTMLParser):
    """Names of the tags that were opened."""

    def __init__(self, text):
        super().__init__()
        self.found = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.found.append(tag)


def rows(text):
    return list(csv.reader(io.StringIO(text)))


def test_the_protocol_is_said_once_and_what_differs_by_name(table):
    assert table.protocols() == ["split val", "CAM: flip"]


def test_no_protocol_is_said_to_be_none(table):
    bare = Table(table.name, table.caption, table.frame, {"CAM": "split val", "labels": ""})
    assert bare.protocols() == ["CAM: split val", "labels: not recorded"]


def test_a_notebook_gets_every_language_and_the_name_of_the_files(table):
    data, metadata = table._repr_mimebundle_()
    assert set(data) == {"text/html", "text/markdown", "text/csv", LATEX} and metadata["filename"] == "scores"
    assert all("60.0" in text for text in data.values())


def test_csv_has_cells_and_protocol(table):
    assert rows(table.csv()) == [
        ["run", "CAM", "labels"],
        ["a", "60.0", "90.0"],
        ["b", "45.0", "-"],
        ["protocol", "split val"],
        ["protocol", "CAM: flip"],
    ]


def test_csv_does_not_run_in_a_spreadsheet():
    frame = pd.DataFrame({"class": ["=1+1", "@x", "+cmd", "-0.5", "+26.9 [1, 2]", "-"]})
    first = [row[0] for row in rows(Table("t", "c", frame).csv())]
    assert first == ["class", "'=1+1", "'@x", "'+cmd", "-0.5", "+26.9 [1, 2]", "-"]


def test_markdown_keeps_its_columns_whatever_a_cell_holds():
    frame = pd.DataFrame({"run": [EVIL, "b"], EVIL: ["1", EVIL]})
    lines = [line for line in Table("t", EVIL, frame).markdown().splitlines() if line.startswith("|")]
    assert len(lines) == 4
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in lines} == {3}
    assert "<b>" not in "".join(lines)


def test_markdown_text_by_hand():
    assert markdown_text("w_ptc | *a* <b> [x](y) #1 $2\n3") == r"w\_ptc \| \*a\* &lt;b&gt; \[x\](y) \#1 \$2 3"


def test_latex_text_by_hand():
    assert latex_text("w_ptc 50% & #1 {a} $x$ ~^\\") == (
        r"w\_ptc 50\% \& \#1 \{a\} \$x\$ \textasciitilde{}\textasciicircum{}\textbackslash{}"
    )
    assert latex_text("|cos| < 1 ± 2\n\x07 [*]") == r"\textbar{}cos\textbar{} \textless{} 1 $\pm$ 2 {[}{*}]"


def test_latex_is_balanced_and_names_the_protocol(table):
    frame = table.frame.assign(run=[EVIL, "[b"])
    for text in (table.latex(), Table("t", EVIL, frame, {"": EVIL}).latex()):
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
    text = table.latex()
    assert r"\caption{Scores in per cent. split val. CAM: flip.}" in text and r"\label{tab:scores}" in text
    assert "a & 60.0 & 90.0 \\\\" in text


def test_a_wide_table_is_scaled_to_the_page():
    wide = Table("t", "c", pd.DataFrame({str(i): ["x"] for i in range(7)})).latex()
    assert r"\resizebox{\linewidth}{!}{\begin{tabular}{lllllll}" in wide and r"\end{tabular}}" in wide


def test_html_is_escaped_and_has_the_protocol_below(table):
    evil = Table(EVIL, EVIL, pd.DataFrame({"run": [EVIL], "state": [EVIL], EVIL: [EVIL]}), {EVIL: EVIL})
    tags = Tags(evil.html()).found
    assert (tags.count("td"), tags.count("th"), tags.count("b")) == (2, 4, 1)  # the one <b> is ours: the row's name
    long = "word " * 40
    assert long.strip() in Table("t", "c", pd.DataFrame({"run": [long.strip()]})).html()  # nothing is cut off
    text = table.html()
    assert text.count('<th scope="col">') == 3 and text.count('<th scope="row">') == 2
    assert '<p class="protocol">split val</p>' in text and 'style="background:#123456"' in text


def test_a_wide_table_of_few_rows_is_turned_on_its_side():
    frame = pd.DataFrame({"run": ["a", "b"]} | {f"score {i}": [f"{i}.1", f"{i}.2"] for i in range(6)})
    text = Table("t", "c", frame).html()
    assert '<th scope="col"><b>a</b></th><th scope="col"><b>b</b></th></tr></thead>' in text
    assert '<tr><th scope="row">score 3</th><td>3.1</td><td>3.2</td></tr>' in text and "sortable" not in text
    many = pd.concat([frame] * 4, ignore_index=True)
    assert '<tr><th scope="row"><b>a</b></th><td>0.1</td>' in Table("t", "c", many).html()  # too many for columns


def test_a_first_column_without_a_heading_is_shown():
    text = Table("t", "c", pd.DataFrame({"": ["torch"], "all runs": ["2.1"]}), aside="gone").html()
    assert '<th scope="row"><b>torch</b></th><td>2.1</td>' in text and "<details>" not in text


def test_sentences_stand_below_the_table_on_a_page_and_in_it_on_paper():
    frame = pd.DataFrame({"run": ["a", "b"], "CAM": ["1", "2"], "measured with": ["seed 0", "<b>"]})
    table = Table("t", "c", frame, aside="measured with")
    table_html, _, below = table.html().partition("</table>")
    assert "seed 0" not in table_html and "<b>a</b>: seed 0" in below and "&lt;b&gt;" in below
    assert rows(table.csv())[1] == ["a", "1", "seed 0"] and "| a | 1 | seed 0 |" in table.markdown()


def test_words_keep_their_place():
    missing = paragraph(EVIL, "missing", run="<i>run</i>").data
    assert Tags(missing["text/html"]).found == ["p", "b"]
    assert (
        missing["text/markdown"].startswith("> **&lt;i&gt;run&lt;/i&gt;**: a\\|b")
        and "\n" not in missing["text/markdown"]
    )
    lines = shell_lines("```\n# heading").data["text/markdown"]
    assert lines.startswith("````sh\n") and lines.endswith("\n````")


def test_a_drawing_is_plotly_and_for_paper_a_picture_of_print_resolution():
    screen = go.Figure(go.Scatter(y=[1, 2]))
    assert parts.drawing("x", "X", screen).data == {PLOTLY: parts.plain_figure(screen), "text/markdown": ""}
    both = parts.drawing("x", "X", screen, Figure(figsize=(2, 1)))
    with Image.open(io.BytesIO(base64.b64decode(both.data["image/png"]))) as picture:
        assert picture.size == (2 * DPI, DPI) and picture.info["dpi"][0] == pytest.approx(DPI, abs=1)
    json.dumps(both._repr_mimebundle_())  # what a kernel sends


def test_a_picture_that_cannot_be_shown_is_named(tmp_path):
    for name, content in (("broken.png", "no picture"), ("curve.json", "[1")):
        (tmp_path / name).write_text(content)
        shown = parts.picture(tmp_path / name, "r").data["text/html"]
        assert f"{name} cannot be shown" in shown and 'class="missing"' in shown


def test_the_words_beside_a_part_do_not_repeat_it():
    """A notebook's file keeps them: an explorer or a picture would be in it twice."""
    assert len(repr(parts.Part({"text/html": 1000 * "x"}, "tokens"))) < 60
