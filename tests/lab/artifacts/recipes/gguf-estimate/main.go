// Prints what gpustack's gguf-parser says of a GGUF file on a CPU: a line of JSON for each context and cache type.
package main

import (
	"encoding/json"
	"fmt"
	"os"
	"strconv"

	parser "github.com/gpustack/gguf-parser-go"
)

var kinds = map[string]parser.GGMLType{
	"f16": parser.GGMLTypeF16, "q8_0": parser.GGMLTypeQ8_0, "q4_0": parser.GGMLTypeQ4_0,
}

func main() {
	if len(os.Args) < 4 {
		fmt.Fprintln(os.Stderr, "usage: gguf-estimate FILE on|off CONTEXT:CACHE_TYPE...")
		os.Exit(2)
	}
	file, err := parser.ParseGGUFFile(os.Args[1])
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	for _, word := range os.Args[3:] {
		var context int64
		var name string
		for at, letter := range word {
			if letter == ':' {
				context, err = strconv.ParseInt(word[:at], 10, 32)
				name = word[at+1:]
			}
		}
		kind, known := kinds[name]
		if err != nil || !known {
			fmt.Fprintf(os.Stderr, "%s: expected CONTEXT:CACHE_TYPE\n", word)
			os.Exit(2)
		}
		options := []parser.GGUFRunEstimateOption{
			parser.WithLLaMACppContextSize(int32(context)),
			parser.WithLLaMACppCacheKeyType(kind),
			parser.WithLLaMACppCacheValueType(kind),
			parser.WithLLaMACppOffloadLayers(0),
		}
		if os.Args[2] == "on" {
			options = append(options, parser.WithFlashAttention())
		}
		host := file.EstimateLLaMACppRun(options...).Devices[0]
		weight, cache, computation := host.Weight, host.KVCache, host.Computation
		_ = json.NewEncoder(os.Stdout).Encode(map[string]uint64{
			"weights": uint64(weight.Input + weight.Compute + weight.ComputeOverridden + weight.Output),
			"cache":   uint64(cache.Key + cache.Value),
			"compute": uint64(computation.Footprint + computation.Input + computation.Compute + computation.Output),
		})
	}
}
