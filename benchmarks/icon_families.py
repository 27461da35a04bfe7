"""Open icon families on the npm registry as @iconify-json/NAME, and how each names its styles."""

import re

# The families, with the version and sha256 of their packages.
PACKAGES = {
    "mdi@1.2.3": "ddd817a7213f91de51147943915c0cda8c8b818a53c92b5c068cfa9883c6d7ac",
    "material-symbols@1.2.98": "142d50bf28e7db85362795be335ebc29dac611d73c404fc1e6fc5cc198e2b3d0",
    "fluent@1.2.60": "9a7cad7adb15288c1fd5e2e1835f1b17f2a8764bb1f31971bffa7c9df1349d6d",
    "tabler@1.2.41": "3bf99af156d28d05568aff524a35ed1ba238df640a7835a5e02e1f8e439685f6",
    "ph@1.2.2": "e3a582a047d9829fc7e8842c660d8065e598d1b68bb58cb68e75a1f1e5a614cc",
    "solar@1.2.13": "9efec9045e9188c5dd5cf9de52f8ad968ffabee565026480a6c74bfe63b3bbc2",
    "game-icons@1.2.4": "f5758efb34d91c4f50b941f355f16ee73938625e5996fabc25171288404460a4",
    "carbon@1.2.29": "8e3059dc90933875439c29ff36ae4370767bc02d8beca6923b1f2bb856cf327a",
    "lucide@1.2.137": "e74db8c3a55fff55bc82de21268c4bced9f65ff10aacc0d5f3a395b0e93243c3",
    "bi@1.2.7": "86a7f213711c929169dbcd64318cd678a0845385156fc707401ba07cbde4da0d",
    "ri@1.2.10": "f7ab45281b250fb0bfa5c5438fc334f010cbf695f5ac851b90b296ef4674fb07",
    "mingcute@1.2.8": "fec65f4430ac70a968e0e7fc7741e7064ba91e6da992b905f75c9d70c717bd2c",
    "icon-park@1.2.4": "c1a25212a31602aca93c3fa6f6b3288e89b9d7811afc132dfd78506e9d586b6f",
    "healthicons@1.2.13": "4c2552c45737788a6599da3c5b72610c7fb4e7f87075d401c56fa16d487d4caf",
    "noto@1.2.9": "3e918d88fc945c0bb3d468dbace6f88caef67f01c9f0e7bcae0915a042e8f1ad",
    "twemoji@1.2.5": "19046dff7d8707ce96212ec86468b36ac5f8e60409629dd13f809265c6d0ebb7",
    "openmoji@1.2.29": "03181e2c156cab35cf4a62f1f7886bd971d59212e75ac3f189d5a4cae3930fc5",
    "fluent-emoji@1.2.7": "8044210dbf11e016d4de85f15d01a243423bd832457e7e2491df1b751c0e272b",
    "flat-color-icons@1.2.3": "d8878a9b0f02d749bc8671eb7d47882eb711185cbcefbb365cbfb488773c4786",
    "streamline-emojis@1.2.4": "5dac87c876b322500989828c5823143e0100d78881627a2e4081a4b897cbfdbc",
    "logos@1.2.19": "1e8907c088bbf02eab8ee1b28f37e68ef22c380f2fb579ff99736b8ce5abf13a",
}

_SKIN = r"(-(medium-light|medium-dark|light|medium|dark)-skin-tone)+"
# What each family puts into a name for a style, a size or the number of a variant.
STYLES = {
    "bi": r"-fill$",
    "carbon": r"^logo-|-(filled|outline|solid)$",
    "fluent": r"(-\d+)?-(filled|regular|light)$",
    # Not the traffic light's, nor the police car's.
    "fluent-emoji": r"(?<!traffic)(?<!car)-(medium-light|medium-dark|light|medium|dark)$",
    "healthicons": r"(-outline|-negative)?(-24px)?$",
    "icon-park": r"-(one|two|three|four|five|six|seven|eight|nine)$",
    "logos": r"-icon$",
    "lucide": r"-\d+$",
    "material-symbols": r"(-\d+)?(-outline)?(-rounded|-sharp)?$",
    "mdi": r"(-variant)?(-outline)?$",
    "mingcute": r"(-\d+)?-(fill|line)$",
    "noto": _SKIN,
    "openmoji": _SKIN,
    "ph": r"(-logo)?(-(bold|light|thin|duotone|fill))?$",
    "ri": r"(-\d+)?-(fill|line)$",
    "solar": r"(-\d+)?-(bold-duotone|line-duotone|bold|broken|linear|outline)$",
    "streamline-emojis": r"-\d+$",
    "tabler": r"^brand-|(-\d+)?(-filled)?$",
    "twemoji": _SKIN,
}


def subject(family: str, name: str) -> str:
    """A name without the marks of its family's style: "book" for fluent's "book-48-filled"."""
    return re.sub(STYLES[family], "", name) or name if family in STYLES else name
