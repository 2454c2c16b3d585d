"""Quantities as people write them: a number with a currency, a unit, a noun or a percent sign, as the whole answer.

Two quantities are equal if their numbers are, and if their units do not contradict each other: "£5", "5 pounds" and "5"
are equal, "£5" and "$5" are not. A noun ("5 apples") never contradicts; units are not converted (docs/scores.md).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import Final

from agentsys.metrics.maths_text import fold_text
from agentsys.metrics.numerals import CHINESE_NUMERAL, SCALES, read_chinese, read_decimal, read_words

PERCENT: Final = "percent"
_LONGEST: Final = 200
_CURRENCIES: Final = {
    "usd": "$ us$ usd dollar dollars buck bucks 美元 美金 ドル 달러",
    "eur": "€ eur euro euros 欧元 歐元 ユーロ 유로",
    "gbp": "£ gbp pound pounds quid sterling 英镑 英鎊 ポンド",
    "jpy": "¥ jpy yen 円 日元 日圆 エン",
    "cny": "¥ cny rmb yuan 元 块 块钱 圆 人民币",
    "krw": "₩ krw won 원",
    "inr": "₹ inr rs rs. rupee rupees ₨ रुपये",
    "rub": "₽ rub ruble rubles rouble roubles руб руб. рублей рубля рубль",
    "thb": "฿ thb baht บาท",
    "other-currency": "₪ ₫ ₺ ₴ ₦ ₱ ₵ ₡ ₲ ₸ ₼ ₾ ₿ chf krona kronor sek nok dkk pln zł brl r$ peso pesos",
    "cent": "¢ cent cents",
}
_UNITS: Final = {
    "m": "m meter meters metre metres 米 公尺 метр метров メートル 미터",
    "cm": "cm cms centimeter centimeters centimetre centimetres 厘米 公分 см センチ",
    "mm": "mm millimeter millimeters millimetre millimetres 毫米 мм",
    "km": "km kms kilometer kilometers kilometre kilometres 千米 公里 км キロメートル",
    "in": "inch inches 英寸",
    "ft": "ft foot feet 英尺",
    "yd": "yd yds yard yards",
    "mi": "mi mile miles 英里",
    "g": "g gram grams gramme grammes 克 グラム",
    "kg": "kg kgs kilo kilos kilogram kilograms 千克 公斤 кг キログラム",
    "mg": "mg milligram milligrams 毫克",
    "t": "t ton tons tonne tonnes 吨 噸",
    "lb": "lb lbs pound pounds 磅",
    "oz": "oz ounce ounces",
    "l": "l liter liters litre litres 升 リットル",
    "ml": "ml milliliter milliliters millilitre millilitres 毫升",
    "s": "s sec secs second seconds 秒 秒钟 секунд",
    "min": "min mins minute minutes 分钟 分鐘 минут",
    "h": "h hr hrs hour hours 小时 小時 時間 часов часа 시간",
    "day": "day days 天 日 дней",
    "week": "week weeks 周 星期",
    "month": "month months 月 个月 個月",
    "year": "year years yr yrs 年 岁 歲 лет",
    "deg": "° degree degrees deg 度",
    "rad": "rad rads radian radians",
    "celsius": "°c celsius 摄氏度 ° degree degrees 度",
    "fahrenheit": "°f fahrenheit 华氏度 ° degree degrees 度",
    PERCENT: "% percent percentage pct パーセント 퍼센트 процент процента процентов",
    "permille": "‰",
}


def _codes_by_name() -> dict[str, frozenset[str]]:
    codes: dict[str, frozenset[str]] = {}
    for code, names in {**_CURRENCIES, **_UNITS}.items():
        for name in names.split():
            codes[name] = codes.get(name, frozenset()) | {code}
    return codes


_CODES: Final = _codes_by_name()
"""The possible meanings of a currency or unit: "pounds" are money or a weight."""
_SYMBOLS: Final = "".join(
    sorted(name for name in _CODES if len(name) == 1 and not name.isalpha() and name not in "°%‰")
)
_PREFIX: Final = re.compile(
    rf"(-?)\s*((?:US|A|C|NZ|HK|R)?[{re.escape(_SYMBOLS)}]|[A-Za-z]{{2,3}}\.?(?=\s*\d)|人民币)\s*"
)
_SCIENTIFIC: Final = re.compile(
    r"([\d.,]*\d)\s*(?:[eE]([-+]?\d+)|(?:\\times|\\cdot|×|·|\*|x)\s*10\s*(?:\^|\*\*)\s*\{?\s*([-+]?\d+)\s*\}?)(?![\d.])"
)
_FRACTION: Final = re.compile(r"(?:(\d+)\s*)?\\frac\s*(?:\{\s*(\d+)\s*\}\s*\{\s*(\d+)\s*\}|(\d)\s*(\d)(?!\d))")
_SLASHED: Final = re.compile(r"(?:(\d+)\s+)?(\d+)\s*/\s*(\d+)(?![\d.])")
_REPEATING: Final = re.compile(r"(\d+)\.(\d*)\\(?:overline|bar|dot)\s*\{?(\d+)\}?")
_DECIMAL: Final = re.compile(r"\d[\d.,'’_]*(?: \d{3}(?:[.,]\d+)?(?!\d))*|\.\d+")
_CHINESE: Final = re.compile(rf"[负負]?[\d.,]*[{CHINESE_NUMERAL}][\d.,{CHINESE_NUMERAL}点點分之又]*")
_COUNTED: Final = re.compile(
    "[个個只隻条條张張本件名人位元円块圆角岁歲年月日天周秒米厘公千克斤吨升毫度倍次种種辆棵朵支枝颗粒台间班组组头匹杯瓶袋箱盒"
    "包枚页頁家套双雙対对段堆排層层步道题分つ匹冊回時小平立]"
)
"""What may follow a Chinese numeral: 一个 is a number, 一样多 is not."""
_NOUN: Final = re.compile(r"[^\W\d_][^\d=<>+*/^\\{}()\[\]|,;:%$]*")
_NO_NOUN: Final = frozenset(
    [
        "and",
        "or",
        "not",
        "more",
        "less",
        "than",
        "least",
        "most",
        "to",
        "from",
        "between",
        "no",
        "times",
        "plus",
        "minus",
        "mod",
        "modulo",
        "squared",
        "cubed",
        "factorial",
        "pi",
        "infinity",
        "because",
        "since",
        "so",
        "if",
        "when",
        "where",
        "is",
        "are",
        "was",
        "or或",
        "和",
        "或",
        "至",
        "到",
        "with",
        "remainder",
    ]
)
_POWERS: Final = (
    (re.compile(r"(?:square|sq\.?)\s+(.+)", re.IGNORECASE), 2),
    (re.compile(r"(?:cubic|cu\.?)\s+(.+)", re.IGNORECASE), 3),
    (re.compile(r"平方(.+)"), 2),
    (re.compile(r"立方(.+)"), 3),
)
_EXPONENT: Final = re.compile(r"(.+?)\s*\^\s*\{?\s*(-?\d)\s*\}?")


@dataclass(frozen=True, slots=True)
class Quantity:
    """A number and the codes that its unit may mean; no codes for a bare number or a noun.

    `name` is the variable that it is the value of ("x = 5"), `commas` whether a single comma was read as a decimal one.
    """

    value: Fraction
    unit: frozenset[str] = frozenset()
    name: str = ""
    commas: bool = False

    def latex(self) -> str:
        """Return the number in LaTeX, without its unit but with a percent sign."""
        above, below = abs(self.value.numerator), self.value.denominator
        number = str(above) if below == 1 else f"\\frac{{{above}}}{{{below}}}"
        return f"{'-' if self.value < 0 else ''}{number}" + ("\\%" if PERCENT in self.unit else "")


def contradict(first: Quantity, second: Quantity) -> bool:
    """Whether both have a unit, or both a variable, and not the same one."""
    names_differ = bool(first.name and second.name) and first.name != second.name
    return names_differ or bool(first.unit and second.unit and not first.unit & second.unit)


def equal(first: Quantity, second: Quantity) -> bool:
    """Whether two quantities are equal; 50 % equals 50 and one half, as math-verify has it."""
    for cents, money in ((first, second), (second, first)):
        if cents.unit == {"cent"} and money.unit & {"usd", "eur"}:
            return cents.value / 100 == money.value
    if contradict(first, second):
        return False
    if first.value == second.value:
        return True
    one, other = (PERCENT in quantity.unit for quantity in (first, second))
    return one != other and (first.value / 100 if one else first.value) == (
        second.value / 100 if other else second.value
    )


@lru_cache(maxsize=1024)
def read_quantity(answer: str) -> Quantity | None:
    """Return the quantity that a whole answer is, None if it is anything else."""
    if len(answer) > _LONGEST:
        return None
    text = _plain(fold_text(answer))
    name = ""
    if match := re.match(r"\\?([A-Za-z]+)\s*(?:=|:=|≈)\s*(?=[-+$€£¥\d.\\])", text):
        name, text = match[1], text[match.end() :]
    sign, text = _read_sign(text)
    codes: frozenset[str] = frozenset()
    if match := _PREFIX.match(text):
        symbol = match[2].lower()
        codes = _CODES.get(symbol) or _CODES.get(symbol[-1]) or frozenset() if symbol != "人民币" else _CODES[symbol]
        if not codes:
            return None
        sign, text = -sign if match[1] else sign, text[match.end() :]
        sign, text = (-sign, text[1:]) if text.startswith("-") else (sign, text)
    if (number := _read_number(text)) is None:
        return None
    value, rest, commas = number
    value, rest = _scaled(value, rest)
    unit = _read_unit(rest)
    if unit is None or (codes and unit and not codes & unit):
        return None
    return Quantity(sign * value, codes | unit, name, commas)


_WHOLE_TEXT: Final = r"^\\(?:text|textbf|mathrm|mbox)\s*\{\s*([-+]?\s*[$€£¥¤]?\s*[\d.,]*\d)"
"""The beginning of a quantity that is all in \\text{}."""


def _plain(text: str) -> str:
    r"""Return an answer without dollar signs around it, \left, formatting and LaTeX's spaces."""
    text = re.sub(r"\\(?:left|right|displaystyle|boxed|mathbf|bf)(?![A-Za-z])", "", text.strip())
    text = text.replace("\\$", "¤").strip("*").strip()
    text = re.sub(_WHOLE_TEXT + r"\s*([^{}\d]*)\}$", r"\1\\text{ \2}", text)
    text = re.sub(r"^\\(?:text|mathrm|mbox)\s*\{([^{}\d]*)\}\s*(?=[-\d.])", r"\1", text)
    text = re.sub(_WHOLE_TEXT + r"([^{}]*)\}", r"\1\2", text)
    if len(text) > 1 and text[0] == text[-1] == "$":
        text = text.strip("$")
    text = re.sub(r"^\\[(\[]|\\[)\]]$", "", text).replace("¤", "$").replace("{,}", ",")
    text = re.sub(r"\\[,;: ]|\\(?:quad|qquad|thinspace|enspace)(?![A-Za-z])|~", " ", text.replace("\\!", ""))
    text = re.sub(r"\^\s*\{?\s*\\circ\s*\}?|\\degree(?![A-Za-z])|\\textdegree", "°", text)
    text = re.sub(r"\\([dtc]?frac)(?![A-Za-z])", r"\\frac", text).replace("\\%", "%")
    text = re.sub(r"\\(?:pounds|textsterling)(?![A-Za-z])", "£", text)
    text = re.sub(r"\\(?:euro|texteuro)(?![A-Za-z])", "€", text)
    text = re.sub(r"\\(?:yen|textyen)(?![A-Za-z])", "¥", text)
    for char in "½⅓¼⅕⅙⅛⅔⅖¾⅗⅜⅘⅚⅝⅞":
        if char in text:
            from agentsys.metrics.maths_text import to_latex

            text = re.sub(char, lambda match: to_latex(match[0]), text)
    text = re.sub(r"[⁻⁰¹²³⁴⁵⁶⁷⁸⁹]+", lambda match: f"^{match[0].translate(_SUPERSCRIPTS)}", text)
    return " ".join(text.split()).rstrip("。").rstrip(".!" if re.search(r"[^\W\d_]\s*[.!]$", text) else ".").strip("* ")


_SUPERSCRIPTS: Final = str.maketrans("⁻⁰¹²³⁴⁵⁶⁷⁸⁹", "-0123456789")
_ABOUT: Final = re.compile(
    r"(?:=|≈|≒|\\approx|~|about|approximately|approx\.|roughly|約|约|大约|exactly)\s*", re.IGNORECASE
)


def _read_sign(text: str) -> tuple[int, str]:
    text = text[match.end() :] if (match := _ABOUT.match(text)) else text
    if text[:1] in ("-", "–", "+"):
        return (1 if text[0] == "+" else -1), text[1:].lstrip()
    return 1, text


def _read_number(text: str) -> tuple[Fraction, str, bool] | None:
    """Return the number at the beginning, the text after it, and whether a comma was read as a decimal one."""
    if match := _SCIENTIFIC.match(text):
        mantissa, exponent = read_decimal(match[1]), int(match[2] or match[3])
        if mantissa is None or abs(exponent) > 400:
            return None
        return mantissa * Fraction(10) ** exponent, text[match.end() :], False
    for pattern in (_FRACTION, _SLASHED):
        if match := pattern.match(text):
            whole, above, below = [int(group) for group in match.groups("0")[:3]]
            if match.lastindex == 5:  # \frac12
                above, below = int(match[4]), int(match[5])
            return (whole + Fraction(above, below), text[match.end() :], False) if below else None
    if match := _REPEATING.match(text):
        integer, fixed, period = match.groups()
        repeating = Fraction(int(period), (10 ** len(period) - 1) * 10 ** len(fixed))
        return Fraction(f"{integer}.{fixed or 0}") + repeating, text[match.end() :], False
    return _read_spoken(text) or _read_digits(text)


def _read_digits(text: str) -> tuple[Fraction, str, bool] | None:
    if not (match := _DECIMAL.match(text)):
        return None
    token = match[0].rstrip(",'’_")
    value = read_decimal(token)
    if value is None:
        return None
    decimal_comma = token.count(",") == 1 and "." not in token and value.denominator != 1
    return value, text[len(token) :], decimal_comma


_PARTS: Final = {"half": 2, "halv": 2, "thir": 3, "fift": 5, "sixt": 6, "seve": 7, "eigh": 8, "nint": 9, "tent": 10}
_PART: Final = re.compile(
    r"(half|halves|thirds?|quarters?|fourths?|fifths?|sixths?|sevenths?|eighths?|ninths?|tenths?)\b", re.IGNORECASE
)


def _read_spoken(text: str) -> tuple[Fraction, str, bool] | None:
    """Return a number in Chinese numerals or English words at the beginning."""
    if match := _CHINESE.match(text):
        token = match[0].rstrip("点點分之又")
        rest = text[len(token) :].strip()
        percent = token.startswith("百分之")
        value = read_chinese(token.removeprefix("百分之")) if percent else read_chinese(token)
        if value is not None and (re.search(r"\d", token) or not rest or _COUNTED.match(rest)):
            return value, "%" if percent and not rest else rest, False
    if words := read_words(text):
        if match := _PART.match(words[1]):
            part = _PARTS.get(match[1][:4].lower(), 0) or 4
            return words[0] / part, words[1][match.end() :], False
        return words[0], f" {words[1]}" if words[1] else "", False
    return None


def _scaled(value: Fraction, rest: str) -> tuple[Fraction, str]:
    """Multiply by "million" and its kin."""
    rest = re.sub(r"\\(?:text|mathrm|mbox|textbf)\s*\{([^{}]*)\}", r" \\text{\1}", rest)
    match = re.match(
        r"\s*(?:\\text\{\s*)?(hundred|thousand|lakhs?|million|crores?|billion|trillion)\b\}?", rest, re.IGNORECASE
    )
    return (value * SCALES[match[1].lower()], rest[match.end() :]) if match else (value, rest)


def _read_unit(rest: str) -> frozenset[str] | None:
    """Return the codes of the unit after a number, none for a noun; None if it is neither: the text is no quantity."""
    in_text = "\\text{" in rest
    spaced = rest.startswith((" ", "-")) or in_text
    bare = re.sub(r"\\text\{([^{}]*)\}", r" \1 ", rest).strip(" -.")
    bare = re.sub(r"\s*\([^()\d]*\)$", "", bare)
    if not bare:
        return frozenset()
    if (codes := _unit_codes(bare.lower())) and (spaced or len(bare) > 1 or not bare.isalpha() or not bare.isascii()):
        return codes
    words = bare.lower().split()
    long_enough = (spaced and len(bare) > 2) or in_text or not bare[0].isascii()
    if not (long_enough and len(words) <= 6 and len(bare) <= 60 and _NOUN.fullmatch(bare)) or _NO_NOUN & {*words}:
        return None
    if re.search(r"[或和至到]|分之|^[\u0370-\u03ff](?![\u0370-\u03ff])", bare):
        return None
    leading = _CODES.get(words[0], frozenset()) if len(words) > 1 and len(words[0]) > 1 else frozenset()
    return leading  # "5 dollars each", "3 hours per day"


def _unit_codes(unit: str) -> frozenset[str]:
    """Return the codes of a unit with powers and a slash: "km/h", "square meters", "cm^2"."""
    unit = re.sub(r"^(?:degrees?|°)\s*(c|f)(?:elsius|ahrenheit)?$", r"°\1", unit)
    parts = re.split(r"\s*/\s*|\s+per\s+|/", unit)
    if len(parts) == 2:
        above, below = map(_unit_codes, parts)
        if above & _CURRENCIES.keys():  # "18 dollars per day" is $18
            return above
        return frozenset(f"{one}/{other}" for one in above for other in below)
    for pattern, power in _POWERS:
        if match := pattern.fullmatch(unit):
            return frozenset(f"{code}^{power}" for code in _CODES.get(match[1].strip(), ()))
    if match := _EXPONENT.fullmatch(unit):
        return frozenset(f"{code}^{match[2]}" for code in _CODES.get(match[1].strip(), ()))
    return _CODES.get(unit, frozenset())
