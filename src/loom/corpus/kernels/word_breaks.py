"""Where Unicode parts words (UAX 29, Unicode 16.0), over UTF-8.

The rules are read as uniseg 0.10 reads them, which Dolma counts words with: marks, formats and joiners are
passed over from WB5 on wherever they stand, also behind a line break.
"""

from __future__ import annotations

import base64
import zlib
from functools import cache

import numpy as np
import numpy.typing as npt

from loom.corpus.kernels.characters import code_point, width
from loom.native import kernel

OTHER, CR, LF, NEWLINE, EXTEND, ZWJ, REGIONAL, FORMAT, KATAKANA, HEBREW, LETTER = range(11)
SINGLE_QUOTE, DOUBLE_QUOTE, MID_NUM_LET, MID_LETTER, MID_NUM, NUMERIC, JOINING, SPACE = range(11, 19)
NOTHING = 31  # before the first character and after the last
CLASS, PICTOGRAPH, BLANK = 31, 32, 64  # of a table's entry: its class, and whether Python strips it
UNKNOWN, JOINED, PARTED = 0, 1, 2

# Runs of code points of one value, (class * 2 + Extended_Pictographic, length as a varint), by zlib in base 85: the
# properties Word_Break and Extended_Pictographic of Unicode 16.0.
RUNS = (
    "c-n<mO^9Sy6+Y*_pE~ub>ecJlr@DH&tE;MeDxI0>nM`NK`3o32#Iyt#5oL@a;J<DJ4JvM2*r=!|0T-g85H~W2tKdQz0wF?7HW9N>!JV6"
    "|6wJbvNbo!7-s<j&8W*?jefOSw?)g7oQI&HU0#mzS;&rBc4P%P+2FARaFxG``P`-n2%vH&BmRXrX&CFC{#S?s~(Tzbf!}v>vgB^KB3w#"
    "6|f~7j~gf$~uvns|1F}{lr>F6EX+cjD{2i^I2M=s&mNJ1J+(r!}T=0-)mc}e9IZ%B{0X3BI=M)L~7o9K95SU+hTr874!C3cKUu3=t578"
    "88vR8!f+*HhBNPK~o|>6+}$1qzBOxrTd;eU=QPpjOXFM!EK&{5t4Lyc?(h#RXZPvux{ir)=$gt?+U%*|ZU}f`Fr0XASF)zmh?FlLgdda"
    "t6Cig0~?rD6+@_>&k3sGC8Nx&rdjo;}P6;1?7<&W%%wy8&hWviPUy_&ZSGyJEyr6Nge^0%*WDVQ5UmC8PEPhpVRk`^`VYi?36YxOCvEV"
    "O4z`7<(NZ?l;CUI&$JIs3TR=n<St7o?k{jCAVJi?0<k%MnG<zK{8hgdjx}g>DgDXa>K@5Y-!G$Gk0m$z_7N3J+nt9+Pu=mfh&EqpTj|n"
    "XE%aGWb~lMS?w#E2X<id5L2qxp+dbXEOJZqBPx^Nke(U)6F7A&_I;?xb>Avv_uGa!9wfxb-@<bNY#p$PP4>uq`&Xae=q{wL?edB-#F)Q"
    "!7goR7FhxPA*yC|fvjqCGi-u^FVL(I3*`cV&qIULmJhwyDK|C=4GEUd&7`aW#*V6hf&cXbuSJ*)%ubr7wL^?}S?2eat5WVOo*?>vQj1@"
    "zpJDDffejgll5H+`x=bHwu=-KS%O(Jg@sWy>6Gmoe64Mh_y8F3SoGmtkiGX6_>mr!w%8aZzdrvViFXrwB^yEg-y=fIZ9^d2-80bBKW8)"
    "R@GDzQl5%KM1aI@KR^9Br7e)413p36@<*!UKl*h2NqCqZvmQxy~P#Rfn)<^0d+e}P}A!I6}yiL9d?j9C}KI*751tH*C@+%OuK=l9(Z1r"
    "ZCX()Gv?wdy<PaNd*!pzQH|IObzv0PU4id=T+)yO{XO8v9{woCA;uZ*flWp)u=Yo+_tQ%ZiV7!PjE5Kuag`bI#$Ukxmnq<eH5YF%7+IP"
    "t+#8xo9Mxf;GoO20&?T&mXPw4BOqAbe*j>fqYP$6c);FvdA>!3y>U3=1MD(D#iB*BFyWkxLBJeV(U(XiNZVQ2sO#xOW;L{QsSiX6hxXC"
    ">>SU&<w&1t`B=!Z-Ft~ZxK@L~G-pIM*n(xdtS#CX=KUE_6L5sI*o1**;v*Y8K{ujwmZz>-IVMr!2~#lvH6?B$+mRo{ik4SGdd5Bw5s$Z"
    "{>UMX;ZUmF%$$V1_MAdpuTCt(?k;-$F^NVGQFgse~cn=!%z^%*#`e8uL_pcsqEht30~nI5Fiz;P*vuCXrLAKYJ37k72+E=^KZj=_96!7"
    "Tj8>+#=yyL~Dz;+K@)2pP+61Ye4rs0Q>87&bvZG*~DrwW`z9uPPT+GQ^N@xjzzxZxP>|!?~HPK%}v;C23wuzV3|Fst#$RChIKWyxFODJ"
    "+R?AjW60cZn<2i&W>2VuP@)-pKF}#%*cFS8Dd<s<J@X5?pwDqKg>Bk6M`Er+NntOX%U*i#cjh#|4zTVTtSz)|jYThbLwU?4Hf=5@VvCq"
    "D=q#{j^hlDv^1B;!h|sszb`YDP`!x4lw_3C1729HJ?s{#}S(knSx-)P<<gyAaTl$<nPB-)_);1OhUWv6;Cy21Z8|*(_Oo@HH!4o&|*p_"
    "1&0mkaVWLEnx=!iB=U}Wkw8PW{h$a^p7y0~!(lwr;;ST#2V&lsjbpl5iv_TFZAEjZt^5@D)w+m~9c=UHZ1QIEy#EW~FZx<19S&Ghi8CK"
    "hd9p+Z~+Md9z{{}c6a!U0RvvqUO|b*I#23-q-r_5O%{4R3T4u4Bg>z;4*{QjL3CutRHw*EF+~N6PJsrcz*rzQYi&<KSSd2KshDu;TvjI"
    "Z)V>L4<zriJ}7zDaZO11PYd))&qQuTqjP=$#}0jCNa75D2;VvP#!wv{r+GlS`l(@;<wUswqx!$#Ew-@AF$j6Rf`aLm4Oq69`*)*?(>=;"
    "R(!FyZaE?_D4h8Cu~By+M0WgFpyN+@Y<b)p#axPXS|lBR6@VXrBHSD7_+cm6eqhl=w?X)X{<uS*(a)ngzs&TS>c;_apO?Dv20lbw{$vK"
    "ny_(bAYrp}m*=wM80SFCRxCBq6+2l62?&Faz9MyM-Ji_f&dOp)j4k=*l1HcgAoZM}B1IW@E`$6=h<MBXmeHDF!8)%O{!VS|;LxZx5MU8"
    "_Wjr6nNI)FjDkON4>^saMyZH^bdnG5=ejOn?EmdjeK)I+E#tnq!z@fR|^jo03r{-JS-VvFd0ig`2qBMG!g`ktg*C=x`ly*~s`J@zsCKQ"
    "qLbU!kKMTIX`bqoc-HbJq>&bpfS$^p6omuej97sZjV~G#{pC%#sL!j#o}=zP}0Zj3JSWV)6W^48_S8_Qx)GM|&emn;(~L*59&2==1s>4"
    "_~`*r|T4(iE5dfRk|4~MVX+|2`tLqM*sG)Jj;_E^Hcnc_ez3wg|A-@d=zK^<T7JxHYG;jd=vno44&nVf+}kHRv)d1hmNPzcacuOR9*fh"
    "f}CFjEadM5+UFytF9BoS<~^XZoNlt<PD$r5Px%Ab0}cU4=DQia>A}ozb?ECy`{<Wb`559=-emgTzk2@$_nFz9"
)


@cache
def properties() -> npt.NDArray[np.uint8]:
    """What the rules ask of each code point: its class, `PICTOGRAPH`, `BLANK` (`str.isspace`)."""
    data = zlib.decompress(base64.b85decode(RUNS))
    values, lengths = [], []
    at = 0
    while at < len(data):
        values.append(data[at] >> 1 | (data[at] & 1) * PICTOGRAPH)
        length = shift = 0
        while True:
            at += 1
            length |= (data[at] & 0x7F) << shift
            shift += 7
            if data[at] < 0x80:
                break
        lengths.append(length)
        at += 1
    table: npt.NDArray[np.uint8] = np.repeat(np.array(values, np.uint8), lengths)
    blank = [point for point in range(0x3001) if chr(point).isspace()]
    table[blank] |= np.uint8(BLANK)
    return table


@kernel(inline="always")
def is_letter(kind):  # type: ignore[no-untyped-def]
    return kind in (LETTER, HEBREW)


@kernel(inline="always")
def is_skipped(kind):  # type: ignore[no-untyped-def]
    return kind in (EXTEND, FORMAT, ZWJ)


@kernel
def first_pass(found, count, marks):  # type: ignore[no-untyped-def]
    """WB3 to WB4: what two characters side by side say. `marks` gets UNKNOWN, JOINED or PARTED for each."""
    marks[0] = PARTED
    before = found[0] & CLASS
    for k in range(1, count):
        here = found[k] & CLASS
        if before == CR and here == LF:
            marks[k] = JOINED
        elif before in (CR, LF, NEWLINE) or here in (CR, LF, NEWLINE):
            marks[k] = PARTED
        elif (
            (before == ZWJ and found[k] & PICTOGRAPH)
            or (before == SPACE and here == SPACE)
            or is_skipped(here)
        ):
            marks[k] = JOINED
        else:
            marks[k] = UNKNOWN
        before = here


@kernel
def joins(two_before, before, here, after):  # type: ignore[no-untyped-def]
    """WB5 to WB13b: whether `here` belongs to what stands before it."""
    letter, digit = is_letter(here), here == NUMERIC
    quote = here in (SINGLE_QUOTE, MID_NUM_LET)
    quoted = before in (SINGLE_QUOTE, MID_NUM_LET)
    if is_letter(before):
        if letter or digit or here == JOINING:
            return True
        if (quote or here == MID_LETTER) and is_letter(after):
            return True
        if before == HEBREW and (here == SINGLE_QUOTE or (here == DOUBLE_QUOTE and after == HEBREW)):
            return True
    if letter:
        if (quoted or before == MID_LETTER) and is_letter(two_before):
            return True
        if here == HEBREW and before == DOUBLE_QUOTE and two_before == HEBREW:
            return True
        if before in (NUMERIC, JOINING):
            return True
    if digit:
        if before in (NUMERIC, JOINING):
            return True
        if (quoted or before == MID_NUM) and two_before == NUMERIC:
            return True
    if before == NUMERIC and (here == JOINING or ((quote or here == MID_NUM) and after == NUMERIC)):
        return True
    if here == KATAKANA:
        return before in (KATAKANA, JOINING)
    return here == JOINING and before in (KATAKANA, JOINING)


@kernel
def mark(data, low, high, table, found, marks):  # type: ignore[no-untyped-def]
    """Say of every character of `data[low:high]` whether it is JOINED to the one before it; returns how many.

    `found` gets the characters' properties; both have room for `high - low`.
    """
    count = 0
    at = low
    while at < high:
        found[count] = table[code_point(data, at)]
        at += width(data[at])
        count += 1
    if count == 0:
        return 0
    first_pass(found, count, marks)
    first = found[0] & CLASS
    two_before, before = NOTHING, NOTHING if is_skipped(first) else first
    after = 0
    pair = first == REGIONAL  # whether the next indicator would be the second of two (WB15, WB16)
    for k in range(1, count):
        here = found[k] & CLASS
        if is_skipped(here):
            continue
        if marks[k] == UNKNOWN:
            if after <= k:
                after = k + 1
                while after < count and is_skipped(found[after] & CLASS):
                    after += 1
            follows = found[after] & CLASS if after < count else NOTHING
            if joins(two_before, before, here, follows):
                marks[k] = JOINED
        if here == REGIONAL:
            if pair and marks[k] == UNKNOWN:
                marks[k] = JOINED
            pair = not pair
        else:
            pair = False
        two_before, before = before, here
    return count


@kernel
def count(data, where, table):  # type: ignore[no-untyped-def]
    """(units, those that are not blank) of the byte ranges `where`, int64[m, 2]: int64[m, 2]."""
    longest = 1
    for k in range(where.shape[0]):
        longest = max(longest, where[k, 1] - where[k, 0])
    found = np.empty(longest, np.uint8)
    marks = np.empty(longest, np.uint8)
    out = np.zeros((where.shape[0], 2), np.int64)
    for k in range(where.shape[0]):
        characters = mark(data, where[k, 0], where[k, 1], table, found, marks)
        blank = True
        for c in range(characters):
            if marks[c] != JOINED:
                out[k, 0] += 1
                blank = True
            if blank and not found[c] & BLANK:
                out[k, 1] += 1
                blank = False
    return out


@kernel
def starts(data, table):  # type: ignore[no-untyped-def]
    """The code points at which the units of a text start, int64[units], and the number of code points."""
    found = np.empty(max(data.size, 1), np.uint8)
    marks = np.empty(max(data.size, 1), np.uint8)
    characters = mark(data, 0, data.size, table, found, marks)
    out = np.empty(characters, np.int64)
    units = 0
    for c in range(characters):
        if marks[c] != JOINED:
            out[units] = c
            units += 1
    return out[:units], characters
