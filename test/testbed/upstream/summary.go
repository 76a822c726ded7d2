// SPDX-License-Identifier: Apache-2.0

package upstream

import (
	"net/http"
	"slices"
	"strings"
)

// Summary is what the log tells about one repository.
type Summary struct {
	Host, Repository string
	// Requests counts all requests by kind, whatever their answer.
	Requests map[Kind]int
	// BlobBytes are the bytes of blobs that were sent.
	BlobBytes int64
	// Blobs has the bytes that were sent of each blob, by digest. A blob that was transferred once has its own size;
	// one of which only the header was asked for is missing.
	Blobs map[string]int64
}

// Summarise adds requests up by repository, sorted by host and repository. What concerns no repository, a ping for
// example, has an empty one.
func Summarise(requests []Request) []Summary {
	type key struct{ host, repository string }
	index := map[key]int{}
	var summaries []Summary
	for _, q := range requests {
		k := key{q.Host, q.Repository}
		i, ok := index[k]
		if !ok {
			i = len(summaries)
			index[k] = i
			summaries = append(summaries, Summary{
				Host: q.Host, Repository: q.Repository, Requests: map[Kind]int{}, Blobs: map[string]int64{},
			})
		}
		s := &summaries[i]
		s.Requests[q.Kind]++
		delivered := q.Status == http.StatusOK || q.Status == http.StatusPartialContent
		if q.Kind == Blob && q.Method == http.MethodGet && delivered {
			s.BlobBytes += q.Bytes
			s.Blobs[q.Digest] += q.Bytes
		}
	}
	slices.SortFunc(summaries, func(a, b Summary) int {
		if c := strings.Compare(a.Host, b.Host); c != 0 {
			return c
		}
		return strings.Compare(a.Repository, b.Repository)
	})
	return summaries
}
