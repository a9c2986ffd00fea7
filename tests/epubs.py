"""What the structure of an EPUB has to be, read back from its bytes."""

import posixpath
import zipfile
from io import BytesIO
from xml.etree import ElementTree

OPF = "{http://www.idpf.org/2007/opf}"


def faults_of_epub(content):
    """What the structure of an EPUB breaks of the laws that a reader relies on."""
    with zipfile.ZipFile(BytesIO(content)) as file:
        first = file.infolist()[0]
        parts = {name: file.read(name) for name in file.namelist()}
    faults = []
    if (first.filename, first.compress_type) != ("mimetype", zipfile.ZIP_STORED):
        faults.append("mimetype is not first and stored")
    if parts["mimetype"] != b"application/epub+zip":
        faults.append("mimetype says something else")
    trees = {
        name: ElementTree.fromstring(data)
        for name, data in parts.items()
        if name.endswith((".xhtml", ".opf", ".xml"))
    }
    root = trees["META-INF/container.xml"].find(".//{*}rootfile")
    package = trees[root.get("full-path")]
    items = {i.get("id"): i for i in package.iter(f"{OPF}item")}
    listed = {f"EPUB/{item.get('href')}" for item in items.values()}
    inside = {n for n in parts if n.startswith("EPUB/")} - {root.get("full-path")}
    if listed != inside:
        faults.append(f"the manifest differs from the files: {listed ^ inside}")
    for itemref in package.iter(f"{OPF}itemref"):
        if itemref.get("idref") not in items:
            faults.append(f"the spine names {itemref.get('idref')}")
    for purpose in ("nav", "cover-image"):
        if purpose not in {i.get("properties") for i in items.values()}:
            faults.append(f"no {purpose}")
    ids = {n: [e.get("id") for e in t.iter() if e.get("id")] for n, t in trees.items()}
    for name, tree in trees.items():
        if len(ids[name]) != len(set(ids[name])):
            faults.append(f"an id stands twice in {name}")
        for element in tree.iter():
            for label in (element.get("aria-labelledby") or "").split():
                if label not in ids[name]:
                    faults.append(f"{name} names {label} as a label")
            target = element.get("href") or element.get("src")
            if not name.endswith(".xhtml") or not target or "://" in target:
                continue
            path, _, fragment = target.partition("#")
            there = posixpath.normpath(posixpath.join(posixpath.dirname(name), path))
            if there not in parts or (fragment and fragment not in ids[there]):
                faults.append(f"{name} leads to {target}")
    return faults
