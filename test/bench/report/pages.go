// SPDX-License-Identifier: Apache-2.0

package report

import (
	_ "embed"
	"fmt"
	"math"
	"path"
	"strings"
	"text/template"

	"github.com/registry-cache/extension/test/bench/result"
)

// Picture is an SVG file.
type Picture struct{ Name, SVG string }

// mainPictures are the candidates for the picture on the published pages. The first one that was measured is used.
var mainPictures = []string{"stale-containerd-2", "herd-amplification"}

const pictureText = "Pull times with containerd 2 for each state of the cache"

// Readme returns the part of the README about the run in folder: one picture and the headline rows. It omits rows that
// were not measured. folder is relative to the README and contains the picture.
func Readme(r *result.Run, folder string) (text string, picture Picture, err error) {
	picture, ok := mainPicture(r)
	if !ok {
		return "", Picture{}, fmt.Errorf("the run in %s has no picture: it must contain measurements for one of %s", folder, strings.Join(mainPictures, ", "))
	}
	var s strings.Builder
	fmt.Fprintf(&s, "![%s](%s)\n\n%s\n", pictureText, path.Join(folder, picture.Name), table(r, func(w row) bool { return w.headline }))
	fmt.Fprintf(&s, "*direct* is without a cache; *stock* is the registry of the distribution project as cache, with the configuration of the public extension. "+
		"Values are medians of one run on one machine with %d processors. [%s](%s) contains all results.\n",
		r.Host.CPUs, path.Dir(folder), path.Join(path.Dir(folder), "README.md"))
	return s.String(), picture, nil
}

//go:embed index.md.tmpl
var indexSource string

var index = template.Must(template.New("index").Parse(indexSource))

// Index returns docs/benchmarks/README.md for the run in the folder name below docs/benchmarks. It contains all rows, the
// measurements in which this server is worse than an alternative, and the missed targets.
func Index(r *result.Run, name string) (string, error) {
	picture, ok := mainPicture(r)
	if !ok {
		return "", fmt.Errorf("the run %s has no picture: it must contain measurements for one of %s", name, strings.Join(mainPictures, ", "))
	}
	var out strings.Builder
	err := index.Execute(&out, struct {
		*result.Run
		Name, Stock, PictureText, Picture, Rows, FirstPull string
		Losses                                             []loss
		Missed                                             []string
	}{
		r, name, strings.TrimPrefix(r.Host.Distribution, "v"), pictureText, picture.Name,
		table(r, func(row) bool { return true }), firstPullSentence(r), losses(r), missed(r),
	})
	return out.String(), err
}

func mainPicture(r *result.Run) (Picture, bool) {
	for _, name := range mainPictures {
		for _, s := range sections(r) {
			for _, f := range s.figures {
				if f.name == name {
					return Picture{name + ".svg", f.svg}, true
				}
			}
		}
	}
	return Picture{}, false
}

// firstPullSentence states the bandwidth to the upstream above which a first pull through the cache is slower than a
// direct pull. This is the throughput of the server with an upstream without delay and bandwidth limit. The sentence is
// empty if the cache is not slower.
func firstPullSentence(r *result.Run) string {
	const bytes = 4 * 25 << 20
	ours, direct := r.Get("cold/rtt=0ms", result.Ours, "s").Median(), r.Get("cold/rtt=0ms", result.Direct, "s").Median()
	if math.IsNaN(ours) || math.IsNaN(direct) || ours <= direct*(1+negligible) {
		return ""
	}
	rate := math.Floor(bytes/ours/1e6/50) * 50
	return fmt.Sprintf("A first pull through the cache is slower than a direct pull if the bandwidth to the upstream exceeds about %.0f MB/s. The cache decrypts, hashes, writes and sends each byte on one processor.", rate)
}
