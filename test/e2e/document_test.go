package e2e

import (
	"testing"

	. "github.com/onsi/ginkgo/v2"
	"github.com/onsi/ginkgo/v2/types"

	"github.com/registry-cache/extension/test/mutations"
)

// specTexts are the full texts of all specs. Nothing is run, and no cluster is needed.
func specTexts(t *testing.T) map[string]bool {
	t.Helper()
	texts := map[string]bool{}
	for _, spec := range PreviewSpecs("registry-cache").SpecReports {
		if spec.LeafNodeType == types.NodeTypeIt {
			texts[spec.FullText()] = true
		}
	}
	if len(texts) == 0 {
		t.Fatal("there are no specs")
	}
	return texts
}

func TestMutationsNameSpecs(t *testing.T) {
	specs := specTexts(t)
	all, err := mutations.Load()
	if err != nil {
		t.Fatal(err)
	}
	for _, mutation := range all {
		if mutation.Spec != nil && !specs[mutation.Spec.Text] {
			t.Errorf("mutation %s: there is no spec %q", mutation.Name, mutation.Spec.Text)
		}
	}
}
