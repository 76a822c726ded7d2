// SPDX-License-Identifier: Apache-2.0

package store

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"slices"
	"sync"

	"github.com/registry-cache/extension/pkg/cacheserver/store/layout"
)

// maxProblems bounds the recorded problems of a volume.
const maxProblems = 20

// Problem is a file or directory that the cache cannot use. The cache continues without it; an operator has to repair it.
type Problem struct {
	// Path is relative to the root; "." is the root.
	Path string
	// Message describes the problem for an operator.
	Message string
}

// problems are the problems of a volume by path. It is safe for concurrent use.
type problems struct {
	root layout.Root

	mu     sync.Mutex // guards the following fields
	byPath map[string]string
	more   int // problems that were not recorded
}

func newProblems(root layout.Root) *problems { return &problems{root: root} }

// addFile records a problem with an absolute path. The error of a system call is recorded without its path.
func (p *problems) addFile(path string, err error) {
	if pathError, ok := errors.AsType[*fs.PathError](err); ok {
		err = errors.New(pathError.Op + ": " + pathError.Err.Error())
	}
	p.add(p.root.Relative(path), err)
}

// add records a problem with a path that is relative to the root. A nil error records nothing.
func (p *problems) add(path string, err error) {
	if err == nil {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if _, known := p.byPath[path]; !known && len(p.byPath) == maxProblems {
		p.more++
		return
	}
	if p.byPath == nil {
		p.byPath = map[string]string{}
	}
	p.byPath[path] = err.Error()
}

// list returns the problems, sorted by path.
func (p *problems) list() []Problem {
	p.mu.Lock()
	defer p.mu.Unlock()
	var list []Problem
	for path, message := range maps.All(p.byPath) {
		list = append(list, Problem{path, message})
	}
	slices.SortFunc(list, func(a, b Problem) int { return cmp.Compare(a.Path, b.Path) })
	if p.more > 0 {
		list = append(list, Problem{".", fmt.Sprintf("%d more problems", p.more)})
	}
	return list
}
