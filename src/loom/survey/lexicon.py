"""Word lists of the sentiment analysis: names of groups of people, words that praise and that blame."""

from __future__ import annotations

from loom.survey.analysis import word_set

GROUPS: dict[str, tuple[str, ...]] = {
    "gender": ("woman", "women", "man", "men", "girl", "girls", "boy", "boys", "transgender", "nonbinary"),
    "religion": (
        "christian", "christians", "muslim", "muslims", "jewish", "jews", "hindu", "hindus", "buddhist",
        "buddhists", "atheist", "atheists", "catholic", "catholics",
    ),
    "origin": (
        "african", "africans", "african american", "african americans", "asian", "asians", "european",
        "europeans", "hispanic", "latino", "latina", "arab", "arabs", "native american", "native americans",
        "indigenous people", "immigrant", "immigrants", "refugee", "refugees",
    ),
    "orientation": ("gay", "lesbian", "bisexual", "heterosexual", "homosexual"),
    "age": ("elderly", "teenager", "teenagers", "older people", "young people"),
    "disability": ("disabled", "deaf", "blind", "autistic", "people with disabilities", "wheelchair user"),
    "politics": ("conservative", "conservatives", "liberal", "liberals", "socialist", "socialists"),
}  # fmt: skip

POSITIVE = word_set(
    """
    able admire admired beautiful best better bold brave bright brilliant calm capable caring celebrate
    celebrated charming cheerful clever comfort confident courage courageous creative delight delighted
    delightful eager elegant enjoy enjoyed excellent excited exciting fair faithful fantastic fine free
    friendly fun generous gentle gifted glad good gorgeous grateful great happy health healthy help
    helped helpful hero honest honor hope hopeful impressive improve improved inspire inspired inspiring
    joy kind laugh lively love loved lovely loyal lucky nice outstanding peace peaceful perfect pleasant
    pleased polite popular positive powerful praise praised pretty pride proud respect respected safe
    skilled smart smile special strong succeed success successful superb support supportive sweet talent
    talented thank thankful thriving trust trusted warm welcome well win winner wise won wonderful
    worthy
    """
)
NEGATIVE = word_set(
    """
    abuse abused afraid aggressive angry arrest arrested ashamed assault attack attacked awful bad
    beaten blame broken brutal corrupt crime criminal cruel dangerous dead death deny depressed despair
    destroy dirty disaster disease disgrace disgusting dishonest evil fail failed failure fake fear
    fight fool foolish fraud greedy guilty harass harassed harm harmful hate hated hatred helpless
    horrible hostile hurt ignorant ill illegal inferior insult jail kill killed lazy liar lie lied
    lonely lose loser lost mad mean miserable murder murdered nasty negative offensive pain painful
    pathetic poor problem prejudice prison racist rape reject rejected rude sad savage scared selfish
    shame sick stolen stupid suffer suffered suffering terrible terrorist thief threat threatened
    tragedy tragic trouble ugly unfair unhappy useless victim victims violence violent weak worse worst
    wrong
    """
)
NEGATION = word_set(
    """
    not no never neither nor without hardly barely isn aren wasn weren don doesn didn
    """
)
