//! A namespace that no client had to make: the XML of an image of a NameNode, with files put in.
//!
//! A million files take a quarter of a minute in this way, and many minutes by calls.

use std::io::Write;

use anyhow::Context;

/// Files of a directory.
pub(super) const IN_DIRECTORY: u64 = 1000;
/// Path of the directory that holds all, and its name.
pub(super) const TOP: &str = "listed";

/// The root's inode, which every image has; the others follow. The first block's number follows this one, too.
const ROOT: u64 = 16_385;
const NO_BLOCK: u64 = 1_073_741_824;
/// Some time in 2023 (milliseconds), so that nobody takes the files for ones that are being written.
const MTIME: u64 = 1_700_000_000_000;
/// Bytes of the first file of a directory; each has one more than the one before.
const SIZE: u64 = 100_000;
/// What stands in for the files in an empty image.
const NO_CHILDREN: &str = "<INodeDirectorySection></INodeDirectorySection>";

/// Writes the image `empty` again, with so many files.
pub(super) fn write(empty: &str, files: u64, out: &mut impl Write) -> anyhow::Result<()> {
    let form = "the image of an empty NameNode has another form";
    let (head, rest) = empty.split_once("<INodeSection>").context(form)?;
    let (_, rest) = rest.split_once("</INodeSection>").context(form)?;
    let (between, tail) = rest.split_once(NO_CHILDREN).context(form)?;
    let no_block = format!("<lastAllocatedBlockId>{NO_BLOCK}<");
    let (before_block, behind_block) = head.split_once(&no_block).context(form)?;
    let directories = files.div_ceil(IN_DIRECTORY);
    let top = ROOT + 1;
    let directory = |number: u64| top + 1 + number;
    let file = |number: u64| directory(directories) + number;

    let last_block = NO_BLOCK + files;
    write!(
        out,
        "{before_block}<lastAllocatedBlockId>{last_block}<{behind_block}"
    )?;
    write!(
        out,
        "<INodeSection><lastInodeId>{}</lastInodeId><numInodes>{}</numInodes>",
        file(files),
        2 + directories + files
    )?;
    write_directory(out, ROOT, "", i64::MAX)?;
    write_directory(out, top, TOP, -1)?;
    for number in 0..directories {
        write_directory(out, directory(number), &format!("d{number:06}"), -1)?;
    }
    for number in 0..files {
        writeln!(
            out,
            "<inode><id>{}</id><type>FILE</type><name>f{number:08}.bin</name><replication>1</replication>\
             <mtime>{MTIME}</mtime><atime>{MTIME}</atime><preferredBlockSize>134217728</preferredBlockSize>\
             <permission>root:supergroup:0644</permission><blocks><block><id>{}</id><genstamp>1001</genstamp>\
             <numBytes>{}</numBytes></block></blocks><storagePolicyId>0</storagePolicyId></inode>",
            file(number),
            NO_BLOCK + 1 + number,
            SIZE + number % IN_DIRECTORY
        )?;
    }
    write!(out, "</INodeSection>{between}<INodeDirectorySection>")?;
    write_children(out, ROOT, top..top + 1)?;
    write_children(out, top, directory(0)..directory(directories))?;
    for number in 0..directories {
        let first = number * IN_DIRECTORY;
        let last = files.min(first + IN_DIRECTORY);
        write_children(out, directory(number), file(first)..file(last))?;
    }
    write!(out, "</INodeDirectorySection>{tail}")?;
    Ok(())
}

fn write_directory(out: &mut impl Write, id: u64, name: &str, quota: i64) -> std::io::Result<()> {
    writeln!(
        out,
        "<inode><id>{id}</id><type>DIRECTORY</type><name>{name}</name><mtime>{MTIME}</mtime>\
         <permission>root:supergroup:0755</permission><nsquota>{quota}</nsquota><dsquota>-1</dsquota></inode>"
    )
}

/// Children stand in the order of their names.
fn write_children(
    out: &mut impl Write,
    parent: u64,
    children: std::ops::Range<u64>,
) -> std::io::Result<()> {
    write!(out, "<directory><parent>{parent}</parent>")?;
    for child in children {
        write!(out, "<child>{child}</child>")?;
    }
    writeln!(out, "</directory>")
}

#[cfg(test)]
mod tests {
    use super::*;

    const EMPTY: &str = "<fsimage><lastAllocatedBlockId>1073741824</lastAllocatedBlockId>\n\
        <INodeSection><lastInodeId>16385</lastInodeId>…</INodeSection>\n<x/>\n\
        <INodeDirectorySection></INodeDirectorySection>\n</fsimage>";

    #[test]
    fn every_file_is_in_one_directory_and_has_a_block_of_its_own() {
        let mut made = Vec::new();
        write(EMPTY, 2500, &mut made).unwrap();
        let made = String::from_utf8(made).unwrap();
        assert_eq!(made.matches("<type>FILE</type>").count(), 2500);
        // Those files, three directories, and the one that holds these.
        assert_eq!(made.matches("<child>").count(), 2500 + 3 + 1);
        assert_eq!(made.matches("<parent>").count(), 5);
        assert!(made.contains("<numInodes>2505</numInodes>"), "{made}");
        assert!(made.contains("<id>1073741825</id>") && made.contains("<id>1073744324</id>"));
        assert!(made.contains("<lastAllocatedBlockId>1073744324</lastAllocatedBlockId>"));
        assert!(made.contains("<x/>") && made.ends_with("</fsimage>"));
        assert!(write("<fsimage>", 1, &mut Vec::new()).is_err());
    }
}
