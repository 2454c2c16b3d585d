"""Maths answers as people and models write them: pairs that are equal, and pairs that must differ."""

from __future__ import annotations

import pytest

from agentsys.metrics.maths import check_answer, group_equal_answers, joined_boxes, reference_of
from agentsys.metrics.maths_text import remove_thought
from agentsys.metrics.quantities import read_quantity

pytest.importorskip("math_verify")

EQUAL = [
    ("so 答案是18元。希望对你有帮助", "18"),
    ("所以她一共有18个苹果。", "18"),
    ("The answer is 18 dollars.", "18"),
    ("The answer is $18. I hope it helps.", "18"),
    ("**Answer:** 18", "18"),
    ("**Answer:**\n\n18 apples", "18"),
    ("\\boxed{12,34,567}", "1234567"),
    ("\\boxed{1'234}", "1234"),
    ("\\boxed{1.234,56 €}", "1234.56"),
    ("\\boxed{1.234.567}", "1234567"),
    ("\\boxed{١٬٢٣٤}", "1234"),
    ("\\boxed{१२}", "12"),
    ("\\boxed{三百二十一}", "321"),
    ("\\boxed{二分之一}", "0.5"),
    ("\\boxed{1.5万}", "15000"),
    ("\\boxed{90°}", "90"),
    ("\\boxed{x²}", "x^2"),
    ("\\boxed{√2}", "\\sqrt{2}"),
    ("\\boxed{(-∞,3]}", "(-\\infty,3]"),
    ("\\boxed{1 1/2}", "1.5"),
    ("\\boxed{1½}", "\\frac32"),
    ("\\boxed{1.5e3}", "1500"),
    ("\\boxed{1.5 × 10³}", "1500"),
    ("\\boxed{2^{10}}", "1024"),
    ("\\boxed{x<3}", "(-\\infty,3)"),
    ("\\boxed{(-\\infty,3)}", "x<3"),
    ("\\boxed{0\\le x\\le 1}", "[0,1]"),
    ("\\boxed{B}", "B"),
    ("\\boxed{(B)}", "B"),
    ("\\boxed{\\text{(B)}}", "B"),
    ("The answer is (B) 12.", "B"),
    ("The answer is B) 12", "12"),
    ("答案：B", "B"),
    ("选B", "B"),
    ("The answer is Option B", "B"),
    ("The answer is Yes, because it holds.", "Yes"),
    ("\\boxed{\\text{yes}}", "Yes"),
    ("答案：是", "Yes"),
    ("\\boxed{\\text{Evelyn}}", "evelyn"),
    ("\\boxed{Beyonce\u0301}", "Beyoncé"),
    ("\\boxed{1} and \\boxed{2}", "1, 2"),
    ("$x=\\boxed{1}$ or $\\boxed{-3}$", "-3,1"),
    ("\\boxed{50\\%}", "50"),
    ("\\boxed{50\\%}", "\\frac12"),
    ("\\boxed{12.5 %}", "12.5"),
    ("\\boxed{12,5 \\%}", "12.5"),
    ("\\boxed{1,5}", "5,1"),
    ("\\boxed{3,14}", "3.14"),
    ("\\boxed{0.\\overline{3}}", "\\frac{1}{3}"),
    ("\\boxed{twelve}", "12"),
    ("The answer is twenty-one.", "21"),
    ("\\boxed{5 cm}", "5\\text{ cm}"),
    ("\\boxed{500 cents}", "\\$5"),
    ("\\boxed{60 \\text{ km/h}}", "60"),
    ("\\boxed{\\{1,2\\}}", "2,1"),
    ("\\boxed{\\frac{3}{4}}", "0.75"),
    ("The answer is \\frac{1}{2}.", "0.5"),
    ("\\fbox{5}", "5"),
    ("\\boxed{no solution}", "\\text{no solution}"),
    ("\\boxed{1{,}234.5}", "1234.5"),
    ("\\boxed{\\$1{,}234}", "1234"),
    ("\\boxed{1 234}", "1234"),
    ("\\boxed{1\u202f234}", "1234"),
    ("He has 1,234 in all", "1234"),
    ("It costs €5", "5"),
    ("Antwort: 12,5 kg", "12.5"),
    ("La réponse est 5 €.", "5"),
    ("<think>x</think>\n\n#### 7", "7"),
    ("a </think> b \\boxed{2}", "2"),
    ("\\boxed{5\\pi}", "5\\pi"),
    ("\\boxed{1.5 million}", "1500000"),
    ("\\boxed{\\text{A}}", "A"),
    ("\\boxed{2/4}", "0.5"),
    ("\\boxed{x=5}", "5"),
    ("\\boxed{3人}", "3"),
    ("全部で１２個です。", "12"),
    ("\\boxed{-5}", "−5"),
    ("\\boxed{5 \\text{ units}^2}", "5"),
    ("\\boxed{\\text{12 square units}}", "12"),
    ("\\boxed{10 000 km}", "10000"),
    ("答えは42です", "42"),
    ("**答案**：42", "42"),
    ("答案：**42**", "42"),
    ("\\boxed{5:3}", "5/3"),
    ("5 (five)", "5"),
    ("\\boxed{90 degrees}", "90^\\circ"),
    ("\\boxed{25 degrees Celsius}", "25°C"),
    ("\\boxed{90^\\circ}", "90 degrees"),
    ("\\boxed 5", "5"),
    ("so $\\boxed 12$", "12"),
    ("\\boxed{\\frac{\\sqrt{3}}{2}}", "\\frac{\\sqrt3}{2}"),
    ("\\boxed{(3,4)}", "(3, 4)"),
    ("\\boxed{2\\sqrt{3}}", "\\sqrt{12}"),
    ("\\boxed{10\\%}", "10\\%"),
    ("\\boxed{1,008,016}", "1008016"),
    ("\\boxed{-\\frac{1}{2}}", "-0.5"),
    ("\\boxed{\\frac{-1}{2}}", "-0.5"),
    ("We get 5 apples and 3 pears so 8", "8"),
    ("The answer is 4 because 2+2=4.", "4"),
    ("#### Step 3: sum\n5+13=18\nSo 18.", "18"),
    ("The final answer is $\\frac{1}{2}$.", "0.5"),
    ("Step 1: x\nThe answer is 18 apples.\nLet me know if you need more help.", "18"),
    ("\\boxed{2 \\frac{1}{2} \\text{ hours}}", "2.5"),
    ("\\boxed{\\dfrac{5}{2}}", "2.5"),
    ("\\boxed{1 000 000}", "1000000"),
    ("\\boxed{１,２３４}", "1234"),
    ("\\boxed{3/4 cup}", "0.75"),
    ("答案是：十八", "18"),
    ("答案为二十四元", "24"),
    ("最終的な答えは1,200円です。", "1200"),
    ("答え：1200円", "1200"),
    ("정답은 18입니다.", "18"),
    ("ответ: 18", "18"),
    ("الجواب: ١٨", "18"),
    ("उत्तर: १८", "18"),
    ("\\boxed{25\\text{ m/s}}", "25 m/s"),
    ("\\boxed{\\text{Monday}}", "Monday"),
    ("The answer is Monday.", "Monday"),
    ("\\boxed{x \\in [0,1]}", "[0,1]"),
    ("\\boxed{\\left[0,1\\right)}", "[0,1)"),
    ("\\boxed{A, C}", "A,C"),
    ("\\boxed{\\textbf{(C)}}", "C"),
    ("\\boxed{\\textbf{(C)}\\ 12}", "C"),
    ("\\boxed{D.}", "D"),
    ("\\boxed{1.0 \\times 10^{-3}}", "0.001"),
    ("\\boxed{6.02×10²³}", "6.02\\times10^{23}"),
    ("\\boxed{0,001}", "0.001"),
    ("\\boxed{1.050,5}", "1050.5"),
    ("\\boxed{\\approx 3.14}", "3.14"),
    ("\\boxed{¥18}", "18元"),
    ("\\boxed{18 dollars}", "\\$18"),
    ("\\boxed{\\$18.00}", "18"),
    ("\\boxed{18.00 dollars}", "\\$18"),
    ("**18**", "18"),
    ("$$18$$", "18"),
    ("\\[ x = 18 \\]", "18"),
    ("\\boxed{5,000}", "5000"),
    ("\\boxed{\\mathrm{5 m}}", "5"),
    ("\\boxed{\\text{No}}", "no"),
    ("\\boxed{12:30}", "12:30"),
    ("\\boxed{y=2x+1}", "y=2x+1"),
    ("\\boxed{2x+1}", "2x+1"),
    ("\\boxed{\\pi}", "π"),
    ("\\boxed{3π}", "3\\pi"),
    ("\\boxed{x = 5 \\text{ or } x = -2}", "5,-2"),
    ("\\boxed{\\infty}", "∞"),
    ("\\boxed{]0,1[}", "(0,1)"),
    ("\\boxed{1/3}", "0.\\overline{3}"),
    ("\\boxed{3 或 4}", "3,4"),
    ("\\boxed{3、4}", "3,4"),
    ("\\boxed{一千二百三十四}", "1234"),
    ("\\boxed{100,000 VND}", "100000"),
    ("\\boxed{7 days}", "7"),
    ("\\boxed{7 天}", "7 days"),
    ("\\boxed{one half}", "0.5"),
    ("\\boxed{18個}", "18"),
    ("\\boxed{$18}", "18"),
    ("\\boxed{2\\,048}", "2048"),
    ("\\boxed{2\\ 048}", "2048"),
    ("\\boxed{30\\;000}", "30000"),
    ("#### ２７", "27"),
    ("答案：27元", "27"),
    ("\\boxed{£9}", "9"),
    ("\\boxed{9€}", "9"),
    ("\\boxed{\\text{9 pears}}", "9"),
    ("<think>maybe \\boxed{8}</think> The answer is 9.", "9"),
    ("<thinking>\\boxed{8}</thinking>\\boxed{9}", "9"),
    ("[THINK]8[/THINK]9", "9"),
    ("<|channel|>analysis<|message|>\\boxed{8}<|end|><|start|>assistant<|channel|>final<|message|>9", "9"),
]
"""Responses and references: the response is right."""

DIFFERENT = [
    ("\\boxed{1.000}", "1000"),
    ("\\boxed{1,000}", "1.000"),
    ("\\boxed{1.234}", "1234"),
    ("\\boxed{1,5}", "15"),
    ("\\boxed{5\\text{ cm}}", "5\\text{ m}"),
    ("\\boxed{£5}", "\\$5"),
    ("\\boxed{5x}", "5"),
    ("\\boxed{silent}", "listen"),
    ("\\boxed{no}", "on"),
    ("\\boxed{on}", "no"),
    ("\\boxed{[0,1)}", "(0,1)"),
    ("\\boxed{(1,2)}", "(2,1)"),
    ("\\boxed{A}", "B"),
    ("\\boxed{(A) 12}", "B"),
    ("The answer is No, it is not.", "Yes"),
    ("\\boxed{no solution}", "no"),
    ("<think>\\boxed{4}</think> The answer is 5.", "4"),
    ("<think>\\boxed{4}", "4"),
    ("<think>4</think>", "4"),
    ("\\boxed{4} \\boxed{3}", "4"),
    ("\\boxed{1} and \\boxed{2}", "2"),
    ("\\boxed{5}", "-5"),
    ("\\boxed{一样多}", "1"),
    ("\\boxed{三百二十一}", "312"),
    ("\\boxed{0.333}", "\\frac13"),
    ("\\boxed{1 1/2}", "11/2"),
    ("\\boxed{11/2}", "1 1/2"),
    ("\\boxed{1.5e3}", "150"),
    ("\\boxed{50\\%}", "5"),
    ("\\boxed{50\\%}", "\\$50"),
    ("\\boxed{x=5}", "y=5"),
    ("\\boxed{1,2,3}", "123"),
    ("\\boxed{1,234}", "1,2,3,4"),
    ("\\boxed{(1,234)}", "1234"),
    ("\\boxed{5 or 6}", "5"),
    ("\\boxed{5 more}", "6"),
    ("\\boxed{Tom}", "Mot"),
    ("\\boxed{2^{10}}", "210"),
    ("\\boxed{x²}", "2x"),
    ("\\boxed{90°}", "100"),
    ("I do not know", "4"),
    ("\\boxed{1,5}", "1,6"),
    ("\\boxed{12,34}", "1234"),
    ("\\boxed{C. albicans}", "C. elegans"),
    ("\\boxed{5 cm}", "5 \\text{ kg}"),
    ("答案：18元", "81"),
    ("\\boxed{3 \\text{ to } 4}", "3"),
    ("\\boxed{5!}", "5"),
    ("\\boxed{True}", "Yes"),
    ("\\boxed{1-1/2}", "1.5"),
    ("\\boxed{5 feet 3 inches}", "5.3"),
    ("\\boxed{5\\%}", "0.5"),
    ("\\boxed{25^\\circ C}", "25^\\circ F"),
    ("\\boxed{y=5}", "x=5"),
    ("\\boxed{\\{1,2\\}}", "(1,2)"),
    ("\\boxed{[1,2]}", "(1,2)"),
    ("\\boxed{5}", "5, 6"),
    ("\\boxed{1.000}", "1,000"),
    ("\\boxed{10,00}", "1000"),
    ("\\boxed{2,000}", "2"),
    ("\\boxed{2.000}", "2000"),
    ("\\boxed{1 234}", "1.234"),
    ("\\boxed{5\\text{ hours}}", "5 minutes"),
    ("\\boxed{x+1}", "x+2"),
    ("\\boxed{18元}", "\\$18"),
    ("\\boxed{18 yen}", "18 yuan"),
    ("\\boxed{1.5亿}", "15000"),
    ("\\boxed{True}", "False"),
    ("\\boxed{Evelyn}", "Eve"),
    ("\\boxed{A}", "(C)"),
    ("\\boxed{12,5}", "125"),
    ("\\boxed{\\frac12}", "12"),
    ("\\boxed{3½}", "3/2"),
    ("\\boxed{5 cm}", "5 cm^2"),
    ("\\boxed{10^{-3}}", "10^3"),
    ("\\boxed{10 \\text{ to } 12}", "10"),
    ("\\boxed{2 or 3}", "2"),
    ("\\boxed{0}", ""),
    ("", "0"),
    ("\\boxed{5 and a half}", "5"),
    ("The answer is not 5", "6"),
    ("\\boxed{一百二}", "102"),
    ("\\boxed{1/2/3}", "1/2"),
    ("\\boxed{½x}", "½"),
    ("\\boxed{<5}", "5"),
    ("\\boxed{-18元}", "18"),
    ("\\boxed{5.5.5}", "5.55"),
    ("\\boxed{½}", "12"),
]
"""Responses and references: the response is wrong."""


@pytest.mark.parametrize(("response", "reference"), EQUAL)
async def test_equal(response: str, reference: str) -> None:
    verdict = await check_answer(response, reference)
    assert verdict.right, verdict


@pytest.mark.parametrize(("response", "reference"), DIFFERENT)
async def test_different(response: str, reference: str) -> None:
    verdict = await check_answer(response, reference)
    assert not verdict.right, verdict


async def test_groups_of_votes() -> None:
    answers = ["5", "£5", "5 apples", "five", "no", "on", "listen", "silent", "50\\%", "0.5", "1,000", "1000", "1.000"]
    assert await group_equal_answers(answers) == [0, 0, 0, 0, 4, 5, 6, 7, 8, 8, 10, 10, 12]
    assert await group_equal_answers(["£5", "$5", "A", "(A)", "Yes.", "yes"]) == [0, 1, 2, 2, 4, 4]


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("<think>a</think>b", "b"),
        ("a</think>b", "b"),  # the template opened the thought
        ("<think>a</think>b</think>c", "c"),
        ("<think>a", ""),
        ("no tags", "no tags"),
        ("5 < 6 and x > 2", "5 < 6 and x > 2"),
    ],
)
def test_what_follows_a_thought(text: str, answer: str) -> None:
    assert remove_thought(text) == answer


async def test_an_unfinished_thought_has_no_answer() -> None:
    assert (await check_answer("<think>so \\boxed{4}", "4")).how == "empty"


@pytest.mark.parametrize(
    ("text", "contents"),
    [
        (r"\boxed{1} and \boxed{2}", ["1", "2"]),
        (r"$\boxed{1}$, $\boxed{2}$ or $\boxed{3}$", ["1", "2", "3"]),
        (r"first \boxed{1}, then \boxed{2}", ["2"]),
        (r"\boxed{1} \boxed{2}", ["2"]),
        (r"\boxed{2} and \boxed{2}", ["2"]),
        (r"\fbox{3}", ["3"]),
        (r"\boxed 7.", ["7."]),
        ("none", []),
    ],
)
def test_several_boxes(text: str, contents: list[str]) -> None:
    assert joined_boxes(text) == contents


def test_references_of_other_types() -> None:
    assert reference_of({"answer": ["12"]}) == "12" and reference_of({"answer": True}) == "True"
    assert reference_of({"answer": r"so \boxed{5}"}) == "5" and reference_of({"answer": 0}) == "0"
    with pytest.raises(ValueError, match="no right answer"):
        reference_of({"answer": float("nan")})


@pytest.mark.parametrize("text", ["9" * 5000, "1e999999999", "(" * 3000, "1" + ",000" * 2000, "十" * 3000, "1/" * 90])
def test_long_and_huge_texts_are_no_quantities(text: str) -> None:
    assert read_quantity(text) is None
