// SPDX-License-Identifier: Apache-2.0

// Package docs checks the Markdown files of this repository: links to files and to headings, and the length of the
// README.
package docs

import (
	"bytes"
	"fmt"
	"net/url"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"strings"
	"unicode"

	"github.com/yuin/goldmark"
	"github.com/yuin/goldmark/ast"
	"github.com/yuin/goldmark/extension"
	"github.com/yuin/goldmark/text"
)

// document contains the parts of a Markdown file that links depend on.
type document struct {
	// anchors are the fragments, without "#", that a link to this file may have.
	anchors map[string]bool
	// links are the destinations of links and images, as written.
	links []string
	// undefined are links in the form [text][reference] without a definition of the reference.
	undefined []string
}

// htmlAttribute finds anchors and destinations in inline HTML, such as <a name="x"> and <img src="x">.
var htmlAttribute = regexp.MustCompile(`(?i)\b(id|name|href|src)\s*=\s*["']([^"']*)["']`)

// undefinedReference finds links that the parser has left as text, because their reference has no definition.
var undefinedReference = regexp.MustCompile(`\[[^\[\]]*\]\[[^\[\]]+\]`)

// parse reads a Markdown file in the dialect of GitHub.
func parse(source []byte) (document, error) {
	d := document{anchors: map[string]bool{}}
	slugs := slugger{}
	root := goldmark.New(goldmark.WithExtensions(extension.GFM)).Parser().Parse(text.NewReader(source))
	err := ast.Walk(root, func(node ast.Node, entering bool) (ast.WalkStatus, error) {
		if !entering {
			return ast.WalkContinue, nil
		}
		switch node := node.(type) {
		case *ast.Heading:
			d.anchors[slugs.slug(plainText(node, source))] = true
		case *ast.Link:
			d.links = append(d.links, string(node.Destination))
		case *ast.Image:
			d.links = append(d.links, string(node.Destination))
		case *ast.RawHTML:
			d.addHTML(node.Segments.Value(source))
		case *ast.HTMLBlock:
			d.addHTML(node.Lines().Value(source))
		}
		if node.Type() == ast.TypeBlock && node.FirstChild() != nil && node.FirstChild().Type() == ast.TypeInline {
			d.undefined = append(d.undefined, undefinedReference.FindAllString(proseText(node, source), -1)...)
		}
		return ast.WalkContinue, nil
	})
	return d, err
}

// proseText returns the text of a block without code.
func proseText(block ast.Node, source []byte) string {
	var out bytes.Buffer
	// The callback returns no error.
	_ = ast.Walk(block, func(node ast.Node, entering bool) (ast.WalkStatus, error) {
		switch node := node.(type) {
		case *ast.CodeSpan:
			return ast.WalkSkipChildren, nil
		case *ast.Text:
			if entering {
				out.Write(node.Value(source))
			}
		}
		return ast.WalkContinue, nil
	})
	return out.String()
}

func (d *document) addHTML(html []byte) {
	for _, match := range htmlAttribute.FindAllSubmatch(html, -1) {
		switch strings.ToLower(string(match[1])) {
		case "id", "name":
			d.anchors[string(match[2])] = true
		default:
			d.links = append(d.links, string(match[2]))
		}
	}
}

// plainText returns the text of a heading without its markup.
func plainText(heading ast.Node, source []byte) string {
	var out bytes.Buffer
	// The callback returns no error.
	_ = ast.Walk(heading, func(node ast.Node, entering bool) (ast.WalkStatus, error) {
		if entering {
			switch node := node.(type) {
			case *ast.Text:
				out.Write(node.Value(source))
			case *ast.String:
				out.Write(node.Value)
			}
		}
		return ast.WalkContinue, nil
	})
	return out.String()
}

// slugger computes the anchors that GitHub gives to the headings of one file. The value counts equal anchors.
type slugger map[string]int

// slug returns the anchor of the next heading: lower case, without punctuation except "-" and "_", with "-" for each
// space, and with a number if an earlier heading has the same anchor.
func (s slugger) slug(heading string) string {
	slug := strings.Map(func(r rune) rune {
		switch {
		case r == ' ':
			return '-'
		case r == '-' || r == '_' || unicode.IsLetter(r) || unicode.IsNumber(r) || unicode.IsMark(r):
			return unicode.ToLower(r)
		}
		return -1
	}, strings.TrimSpace(heading))
	count := s[slug]
	s[slug]++
	if count > 0 {
		slug = fmt.Sprintf("%s-%d", slug, count)
	}
	return slug
}

// brokenLinks checks the Markdown files, which are slash-separated paths relative to the folder root. It returns one
// line for each link to a file or heading that does not exist, or with an undefined reference. Links to other hosts are not checked.
func brokenLinks(root string, files []string) ([]string, error) {
	documents := map[string]document{}
	load := func(file string) (document, error) {
		if d, ok := documents[file]; ok {
			return d, nil
		}
		source, err := os.ReadFile(filepath.Join(root, filepath.FromSlash(file)))
		if err != nil {
			return document{}, err
		}
		d, err := parse(source)
		documents[file] = d
		return d, err
	}
	var broken []string
	for _, file := range files {
		d, err := load(file)
		if err != nil {
			return nil, err
		}
		for _, link := range d.links {
			target, err := url.Parse(link)
			if err != nil {
				broken = append(broken, fmt.Sprintf("%s: %s: %v", file, link, err))
				continue
			}
			if target.Scheme != "" || target.Host != "" {
				continue
			}
			to := file
			if target.Path != "" {
				to = path.Join(path.Dir(file), target.Path)
			}
			// A path outside of the repository cannot be opened from a clone, even if it exists on this host.
			if to == ".." || strings.HasPrefix(to, "../") || path.IsAbs(target.Path) {
				broken = append(broken, fmt.Sprintf("%s: %s: is outside of the repository", file, link))
				continue
			}
			info, err := os.Stat(filepath.Join(root, filepath.FromSlash(to)))
			if err != nil {
				broken = append(broken, fmt.Sprintf("%s: %s: file does not exist", file, link))
				continue
			}
			if target.Fragment == "" || info.IsDir() || path.Ext(to) != ".md" {
				continue
			}
			linked, err := load(to)
			if err != nil {
				return nil, err
			}
			if !linked.anchors[target.Fragment] {
				broken = append(broken, fmt.Sprintf("%s: %s: %s has no such heading", file, link, to))
			}
		}
		for _, link := range d.undefined {
			broken = append(broken, fmt.Sprintf("%s: %s: the reference is not defined", file, link))
		}
	}
	return broken, nil
}
